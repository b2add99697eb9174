// The dialog of the camera: one image of it, or all, as fast as the server answers.

import { Problem } from "./server.js";

export class Camera extends EventTarget {
  /** Dispatches "image" with a File, "live" with a MediaStream that is then the taker's to stop,
   * "problem" with a Problem. */
  constructor(root) {
    super();
    this.dialog = root.querySelector("#camera-dialog");
    this.video = root.querySelector("#camera-video");
    root.querySelector("#camera").addEventListener("click", () => this.#open());
    root.querySelector("#camera-cancel").addEventListener("click", () => this.dialog.close());
    root.querySelector("#camera-take").addEventListener("click", () => this.#take());
    root.querySelector("#camera-live").addEventListener("click", () => this.#hand());
    this.dialog.addEventListener("close", () => {
      for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
      this.video.srcObject = null;
    });
  }

  async #open() {
    if (!navigator.mediaDevices) {
      this.#complain("No camera here", "Browsers allow it on https and on localhost only.");
      return;
    }
    try {
      this.video.srcObject = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: "environment", width: { ideal: 1280 } },
      });
    } catch (error) {
      this.#complain("No camera", `The browser says: ${error.message}.`);
      return;
    }
    this.dialog.showModal();
  }

  async #take() {
    const file = await snapshot(this.video);
    this.dialog.close();
    if (file) this.#tell("image", file);
    else this.#complain("No image", "The camera had sent none yet: try again.");
  }

  #hand() {
    const stream = this.video.srcObject;
    this.video.srcObject = null; // so that closing does not stop it
    this.dialog.close();
    this.#tell("live", stream);
  }

  #complain(title, detail) {
    this.#tell("problem", new Problem(title, detail));
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** What a video shows now, as a JPEG file; null before its first image. mostPx: of its longer side.
 * The canvas it was drawn on is `canvas`, where one is given. */
export async function snapshot(video, mostPx = Infinity, canvas = document.createElement("canvas")) {
  const { videoWidth: width, videoHeight: height } = video;
  if (!width) return null;
  const scale = Math.min(1, mostPx / Math.max(width, height));
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return blob && new File([blob], "camera.jpg", { type: "image/jpeg" });
}
