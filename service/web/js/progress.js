// How far the image is that is being segmented, and a button that ends it.

const PATIENCE_MS = 250; // shorter work shows nothing: it would only flicker
const EVERY_MS = 200;

export class Progress extends EventTarget {
  #shown = null; // what is being told of
  #beganMs = 0;
  #timer = null;

  /** Dispatches "cancel". */
  constructor(root) {
    super();
    this.box = root.querySelector("#progress");
    this.bar = root.querySelector("#progress-bar");
    this.text = root.querySelector("#progress-text");
    this.button = root.querySelector("#progress-cancel");
    this.button.addEventListener("click", () => this.dispatchEvent(new Event("cancel")));
  }

  /** job: the one that runs. done, all: of how many. */
  follow(job, done, all) {
    if (this.#shown !== job) this.#beganMs = performance.now();
    this.#shown = job;
    this.bar.hidden = false;
    this.button.textContent = all > 1 ? "Cancel all" : "Cancel";
    this.#say = () => {
      const seconds = (performance.now() - this.#beganMs) / 1000;
      const before = all > 1 ? `Image ${done + 1} of ${all}: ` : "";
      if (job.sent < 1) {
        this.bar.value = job.sent;
        this.text.textContent = `${before}${Math.round(100 * job.sent)} % sent`;
      } else {
        this.bar.removeAttribute("value"); // nobody knows how long
        this.text.textContent = `${before}sent; the server works, ${seconds.toFixed(1)} s`;
      }
      this.box.hidden = all === 1 && performance.now() - this.#beganMs < PATIENCE_MS;
    };
    this.#say();
    this.#timer ??= setInterval(() => this.#say(), EVERY_MS);
  }

  /** rate: images a second. ms: from the image to its answer. */
  live(rate, ms) {
    this.end();
    this.box.hidden = false;
    this.bar.hidden = true;
    this.button.textContent = "Stop";
    this.text.textContent = rate
      ? `Live: ${rate.toFixed(1)} images a second, ${Math.round(ms)} ms each`
      : "Live: the first image is on its way";
  }

  end() {
    clearInterval(this.#timer);
    this.#timer = this.#shown = null;
    this.box.hidden = true;
    this.bar.hidden = false;
  }

  #say = () => {};
}
