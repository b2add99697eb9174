// Ways for an image to come in: chosen, dropped, pasted, or taken with the camera.

import { Problem } from "./server.js";

export class Intake extends EventTarget {
  /** Dispatches "image" with a File, "problem" with a Problem. */
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
    this.#camera(root);
  }

  #take(files) {
    if (files.length === 1) {
      this.dispatchEvent(new CustomEvent("image", { detail: files[0] }));
    } else if (files.length > 1) {
      this.#complain("One image at a time", `${files.length} files came in: send one of them.`);
    } else {
      this.#complain("No image", "That was no file: drop or paste an image, or choose one.");
    }
  }

  #complain(title, detail) {
    this.dispatchEvent(new CustomEvent("problem", { detail: new Problem(title, detail) }));
  }

  #camera(root) {
    const dialog = root.querySelector("#camera-dialog");
    const video = root.querySelector("#camera-video");
    root.querySelector("#camera").addEventListener("click", async () => {
      if (!navigator.mediaDevices) {
        this.#complain("No camera here", "Browsers allow it on https and on localhost only.");
        return;
      }
      try {
        video.srcObject = await navigator.mediaDevices.getUserMedia({
          video: { facingMode: "environment", width: { ideal: 1280 } },
        });
      } catch (error) {
        this.#complain("No camera", `The browser says: ${error.message}.`);
        return;
      }
      dialog.showModal();
    });
    root.querySelector("#camera-cancel").addEventListener("click", () => dialog.close());
    root.querySelector("#camera-take").addEventListener("click", async () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext("2d").drawImage(video, 0, 0);
      const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
      dialog.close();
      if (blob) this.#take([new File([blob], "camera.jpg", { type: "image/jpeg" })]);
      else this.#complain("No image", "The camera had sent none yet: try again.");
    });
    dialog.addEventListener("close", () => {
      for (const track of video.srcObject?.getTracks() ?? []) track.stop();
      video.srcObject = null;
    });
  }
}
