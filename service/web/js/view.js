// The image with the classes over it: two canvases in one frame. Opacity and wipe are CSS, so that
// moving a slider draws nothing again.

const LONGEST_PX = 2048; // of a canvas: phones refuse large ones, and nobody sees more at once
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class View extends EventTarget {
  /** Dispatches "point" with detail {x, y} in pixels of the image, or null; "wipe" with 0..100. */
  constructor(frame) {
    super();
    this.frame = frame;
    this.upload = frame.querySelector("#upload");
    this.classes = frame.querySelector("#classes");
    this.cursor = frame.querySelector("#cursor");
    this.tag = frame.querySelector("#tag");
    this.width = this.height = 0;
    this.at = null;
    frame.addEventListener("pointermove", (event) => this.#pointed(event));
    frame.addEventListener("pointerdown", (event) => this.#pointed(event));
    frame.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.#point(null);
    });
    frame.addEventListener("keydown", (event) => this.#key(event));
    this.#dragSplit(frame.querySelector(".split"));
  }

  /** bitmap: what can be drawn; null where the browser cannot read the format. Sizes in pixels. */
  show(bitmap, width, height) {
    [this.width, this.height] = [width, height];
    const scale = Math.min(1, LONGEST_PX / Math.max(width, height));
    for (const canvas of [this.upload, this.classes]) {
      canvas.width = Math.max(1, Math.round(width * scale));
      canvas.height = Math.max(1, Math.round(height * scale));
    }
    if (bitmap) {
      const context = this.upload.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(bitmap, 0, 0, this.upload.width, this.upload.height);
    }
    this.frame.style.setProperty("--ratio", width / height);
    this.frame.hidden = false;
    this.#point(null);
  }

  /** ids: Uint8Array of height * width. palette: 256 of RGBA. */
  paint(ids, palette) {
    const { width, height } = this.classes;
    const pixels = new Uint32Array(width * height);
    const columns = Uint32Array.from({ length: width }, (_, x) =>
      Math.floor(((x + 0.5) * this.width) / width),
    );
    for (let y = 0, out = 0; y < height; y++) {
      const row = Math.floor(((y + 0.5) * this.height) / height) * this.width;
      for (let x = 0; x < width; x++) pixels[out++] = palette[ids[row + columns[x]]];
    }
    const image = new ImageData(new Uint8ClampedArray(pixels.buffer), width, height);
    this.classes.getContext("2d").putImageData(image, 0, 0);
  }

  /** 0 (the image) .. 100 (the colours). */
  set opacity(percent) {
    this.frame.style.setProperty("--opacity", percent / 100);
  }

  /** How much of the width, from the left, is left without colours, 0 .. 100. */
  set wipe(percent) {
    this.frame.style.setProperty("--wipe", `${percent}%`);
  }

  /** What is said beside the cursor. */
  label(text, color) {
    this.tag.textContent = text;
    this.tag.style.setProperty("--color", color);
  }

  #fraction(event) {
    const box = this.frame.getBoundingClientRect();
    const inside = (value) => Math.min(0.999999, Math.max(0, value));
    return {
      x: inside((event.clientX - box.left) / box.width),
      y: inside((event.clientY - box.top) / box.height),
    };
  }

  #pointed(event) {
    const { x, y } = this.#fraction(event);
    this.#point({ x: Math.floor(x * this.width), y: Math.floor(y * this.height) });
  }

  #point(at) {
    this.at = at;
    this.cursor.hidden = this.tag.hidden = at === null;
    if (at) {
      this.frame.style.setProperty("--x", `${(100 * (at.x + 0.5)) / this.width}%`);
      this.frame.style.setProperty("--y", `${(100 * (at.y + 0.5)) / this.height}%`);
      this.tag.classList.toggle("left", at.x > this.width * 0.7);
      this.tag.classList.toggle("above", at.y > this.height * 0.85);
    }
    this.dispatchEvent(new CustomEvent("point", { detail: at }));
  }

  #key(event) {
    if (event.key === "Escape" && this.at) {
      this.#point(null);
      event.preventDefault();
    }
    const [right, down] = KEYS[event.key] ?? [0, 0];
    if (!right && !down) return;
    event.preventDefault(); // the arrows would scroll
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(this.width / 50));
    const from = this.at ?? { x: Math.floor(this.width / 2), y: Math.floor(this.height / 2) };
    const within = (value, size) => Math.min(size - 1, Math.max(0, value));
    this.#point({
      x: within(from.x + right * step, this.width),
      y: within(from.y + down * step, this.height),
    });
  }

  #dragSplit(split) {
    split.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      split.setPointerCapture(event.pointerId);
    });
    split.addEventListener("pointermove", (event) => {
      if (!split.hasPointerCapture(event.pointerId)) return;
      const detail = Math.round(100 * this.#fraction(event).x);
      this.dispatchEvent(new CustomEvent("wipe", { detail }));
    });
  }
}
