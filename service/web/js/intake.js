// Ways for images to come in: chosen, dropped or pasted; camera.js has another.

import { Problem } from "./server.js";

export class Intake extends EventTarget {
  /** Dispatches "images" with a list of Files, "problem" with a Problem. */
  constructor(root) {
    super();
    const input = root.querySelector("#file");
    root.querySelector("#choose").addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      this.#take(input.files);
      input.value = ""; // the same file may be chosen again
    });
    root.addEventListener("dragover", (event) => {
      event.preventDefault();
      root.body.classList.add("dragging");
    });
    root.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) root.body.classList.remove("dragging");
    });
    root.addEventListener("drop", (event) => {
      event.preventDefault();
      root.body.classList.remove("dragging");
      this.#take(event.dataTransfer.files);
    });
    root.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) this.#take(event.clipboardData.files);
    });
  }

  #take(files) {
    if (files.length) {
      this.dispatchEvent(new CustomEvent("images", { detail: [...files] }));
    } else {
      const detail = "That was no file: drop or paste images, or choose some.";
      this.dispatchEvent(new CustomEvent("problem", { detail: new Problem("No image", detail) }));
    }
  }
}
