// The API key, for servers that want one: asked for when the server says so, kept for this tab only.

const STORED = "fcn-api-key";
const USABLE = /^[!-~]+$/; // what a header may carry

export class Key extends EventTarget {
  #asking = null;

  /** Dispatches "change" when a key was given or forgotten. */
  constructor(root) {
    super();
    this.dialog = root.querySelector("#key-dialog");
    this.input = root.querySelector("#key-input");
    this.why = root.querySelector("#key-why");
    this.value = remembered();
    root.querySelector("#key-cancel").addEventListener("click", () => this.dialog.close());
    root.querySelector("#key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const value = this.input.value.trim();
      if (USABLE.test(value)) {
        this.#set(value);
        this.dialog.close("given");
      } else {
        this.why.textContent = "A key has no spaces, and only letters, digits and signs of ASCII.";
        this.input.focus();
      }
    });
    root.querySelector("#key-forget").addEventListener("click", () => {
      this.#set("");
      root.querySelector("#copy").focus(); // the button is gone
    });
  }

  /** Headers of a request. */
  get headers() {
    return this.value ? { Authorization: `Bearer ${this.value}` } : {};
  }

  /** After a 401 to a request that was sent with the key `sent`: true when there is another. */
  async wanted(sent) {
    if (this.value !== sent) return Boolean(this.value); // given, or forgotten, since
    this.#asking ??= this.#ask(Boolean(sent)).finally(() => (this.#asking = null));
    return this.#asking;
  }

  #ask(refused) {
    this.why.textContent = refused ? "The server did not take that key." : "";
    this.input.value = "";
    this.dialog.returnValue = "";
    this.dialog.showModal();
    return new Promise((done) => {
      this.dialog.addEventListener("close", () => done(this.dialog.returnValue === "given"), {
        once: true,
      });
    });
  }

  #set(value) {
    this.value = value;
    this.input.value = "";
    try {
      if (value) sessionStorage.setItem(STORED, value);
      else sessionStorage.removeItem(STORED);
    } catch {
      // Storage is switched off: this page's memory has it.
    }
    this.dispatchEvent(new Event("change"));
  }
}

function remembered() {
  try {
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return "";
  }
}
