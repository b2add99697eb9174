// One image on its way through the server, and what came back.

import { Problem, segment } from "./server.js";
import { readIds } from "./png.js";

const THUMBNAIL_PX = 96;

export class Job {
  /** State: "waiting", "busy", "done", "failed" or "cancelled". */
  constructor(file) {
    this.file = file;
    this.state = "waiting";
    this.problem = null;
    this.answer = null; // {version, scale, width, height, blob, pixels, stages, tripMs}
    this.sent = 0; // 0..1 of the upload
    this.thumbnail = null; // a canvas, once the image was drawn
  }

  /** Asks the server. request: {version, scale}. progress: called when `sent` grew. */
  async run(request, maxBytes, signal, progress) {
    this.sent = 0;
    if (this.file.size > maxBytes) {
      const limit = (maxBytes / 2 ** 20).toPrecision(3);
      throw new Problem("Image too large", `this server takes up to ${limit} MiB: send a smaller one`);
    }
    const answer = await segment(
      this.file,
      { ...request, output: "label_map" },
      signal,
      (sent) => progress((this.sent = sent)),
    );
    const { width, height, ids } = await readIds(answer.blob);
    const pixels = new Uint32Array(256);
    for (const id of ids) pixels[id]++;
    this.answer = { ...answer, ...request, width, height, pixels };
  }

  /** The class ids: read again each time, for twelve megapixels of each image are too many to keep. */
  async labels() {
    return readIds(this.answer.blob);
  }

  /** What can be drawn of the image; null where this browser cannot read its format, until the
   * server has read it. */
  async bitmap() {
    try {
      return await createImageBitmap(this.file);
    } catch {
      if (this.state !== "done") return null;
      const untouched = { version: this.answer.version, output: "overlay", alpha: 0 };
      return createImageBitmap((await segment(this.file, untouched)).blob);
    }
  }

  /** Keeps a small copy of what `bitmap` gave. */
  remember(bitmap) {
    const scale = THUMBNAIL_PX / Math.max(bitmap.width, bitmap.height);
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    this.thumbnail = canvas;
  }
}
