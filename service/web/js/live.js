// A camera, image after image: the next one leaves when the answer to the last is there, so that the
// server sets the pace and no image is ever waited for twice.

import { snapshot } from "./camera.js";
import { readIds } from "./png.js";
import { segment } from "./server.js";

const MOST_PX = 640;
const REMEMBERED = 10; // images that the rate is taken over
const LONGEST_WAIT_S = 10;

const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

export class Live extends EventTarget {
  #running = null; // an AbortController

  /** Dispatches "image" with {canvas, file, labels, stages, tripMs, rate}, "problem" with what ended
   * it, "end" with the last file, or null where there was none. */
  constructor() {
    super();
    this.video = document.createElement("video");
    [this.video.muted, this.video.playsInline] = [true, true];
  }

  get isOn() {
    return this.#running !== null;
  }

  /** ask: gives {version, scale} for the next image. */
  async start(stream, ask) {
    this.stop();
    const running = (this.#running = new AbortController());
    const { signal } = running;
    let last = null;
    try {
      this.video.srcObject = stream;
      await this.video.play();
      const ends = [];
      while (!signal.aborted) {
        const image = await this.#next(ask(), signal);
        if (!image || signal.aborted) continue;
        last = image.file;
        ends.push(performance.now());
        if (ends.length > REMEMBERED) ends.shift();
        const rate = (1000 * (ends.length - 1)) / (ends.at(-1) - ends[0] || 1);
        this.dispatchEvent(new CustomEvent("image", { detail: { ...image, rate } }));
      }
    } catch (error) {
      if (!signal.aborted) this.dispatchEvent(new CustomEvent("problem", { detail: error }));
    } finally {
      for (const track of stream.getTracks()) track.stop();
      if (this.#running === running) this.#running = null;
      this.dispatchEvent(new CustomEvent("end", { detail: last }));
    }
  }

  stop() {
    this.#running?.abort();
    this.#running = null;
  }

  /** One image and its answer; null where there is none yet: it is tried again. */
  async #next(request, signal) {
    if (document.hidden) return wait(0.5); // nobody looks
    const canvas = document.createElement("canvas");
    const file = await snapshot(this.video, MOST_PX, canvas);
    if (!file) return wait(0.1);
    try {
      const answer = await segment(file, { ...request, output: "label_map" }, signal);
      const labels = await readIds(answer.blob);
      return { canvas, file, labels, stages: answer.stages, tripMs: answer.tripMs };
    } catch (error) {
      if (!error.retryAfterS) throw error;
      return wait(Math.min(LONGEST_WAIT_S, error.retryAfterS)); // the server is full
    }
  }
}
