// What went wrong, in words, above the image.

import { Problem } from "./server.js";

export class Problems extends EventTarget {
  /** Dispatches "again" when the reader wants another try, "closed" when the message was put away. */
  constructor(root) {
    super();
    this.box = root.querySelector("#problem");
    [this.title, this.detail, this.request] = ["title", "detail", "request"].map((part) =>
      root.querySelector(`#problem-${part}`),
    );
    this.retry = root.querySelector("#problem-again");
    this.retry.addEventListener("click", () => this.dispatchEvent(new Event("again")));
    root.querySelector("#problem-close").addEventListener("click", () => {
      this.hide();
      this.dispatchEvent(new Event("closed"));
    });
  }

  /** retry: whether another try with the same image makes sense. */
  show(error, retry = false) {
    if (error.name === "AbortError") return; // it was wanted so
    const { title, detail, requestId } =
      error instanceof Problem ? error : new Problem("The page failed", error.message);
    this.title.textContent = title;
    this.detail.textContent = detail.charAt(0).toUpperCase() + detail.slice(1);
    this.request.textContent = requestId ? `Request ${requestId}` : "";
    this.retry.hidden = !retry;
    this.box.hidden = false;
    this.box.scrollIntoView({ block: "nearest" });
  }

  hide() {
    this.box.hidden = true;
  }
}
