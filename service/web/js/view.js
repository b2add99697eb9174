// The image with the classes and their outlines over it: three canvases in one frame. Opacity, wipe
// and zoom are CSS, so that moving a slider draws nothing again.

import { followGestures } from "./gestures.js";
import { outlines } from "./outlines.js";
import { Zoom } from "./zoom.js";

const LONGEST_PX = 2048; // of a canvas: phones refuse large ones, and nobody sees more at once
const OUTLINES_PX = 1400; // so that their lines are as wide over a small image as over a large one
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FACTORS = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 };

export class View extends EventTarget {
  /** Dispatches "point" with detail {x, y} in pixels of the image, or null; "wipe" with 0..100;
   * "zoom". */
  constructor(frame) {
    super();
    this.frame = frame;
    this.upload = frame.querySelector("#upload");
    this.classes = frame.querySelector("#classes");
    this.lines = frame.querySelector("#outlines");
    this.cursor = frame.querySelector("#cursor");
    this.tag = frame.querySelector("#tag");
    this.width = this.height = 0;
    this.at = null;
    this.wiped = 0;
    this.zoom = new Zoom();
    this.zoom.addEventListener("change", () => this.#zoomed());
    followGestures(frame, this.zoom);
    frame.addEventListener("pointermove", (event) => this.#pointed(event));
    frame.addEventListener("pointerdown", (event) => this.#pointed(event));
    frame.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") this.#point(null);
    });
    frame.addEventListener("keydown", (event) => this.#key(event));
    this.#dragSplit(frame.querySelector(".split"));
  }

  /** The image, without classes until `paint`. drawable: a bitmap or canvas. Sizes in pixels.
   * keeps: the cursor stays where it is, for images that follow each other. */
  show(drawable, width, height, keeps = false) {
    const scale = Math.min(1, LONGEST_PX / Math.max(width, height));
    const size = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    if (this.width !== width || this.height !== height) this.zoom.reset();
    [this.width, this.height] = [width, height];
    for (const canvas of [this.upload, this.classes]) [canvas.width, canvas.height] = size;
    this.lines.hidden = true;
    const context = this.upload.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(drawable, 0, 0, ...size);
    this.frame.style.setProperty("--ratio", width / height);
    this.frame.hidden = false;
    this.#zoomed();
    const inside = this.at && this.at.x < width && this.at.y < height;
    this.#point(keeps && inside ? this.at : null);
  }

  /** The image alone. */
  clear() {
    const { width, height } = this.classes;
    this.classes.getContext("2d").clearRect(0, 0, width, height);
    this.lines.hidden = true;
  }

  /** ids: Uint8Array of height * width. palette: 256 of RGBA. outlined: draws their borders, too. */
  paint(ids, palette, outlined) {
    const { width, height } = this.classes;
    const pixels = new Uint32Array(width * height);
    const columns = Uint32Array.from({ length: width }, (_, x) =>
      Math.floor(((x + 0.5) * this.width) / width),
    );
    for (let y = 0, out = 0; y < height; y++) {
      const row = Math.floor(((y + 0.5) * this.height) / height) * this.width;
      for (let x = 0; x < width; x++) pixels[out++] = palette[ids[row + columns[x]]];
    }
    put(this.classes, pixels);
    this.lines.hidden = !outlined;
    if (outlined) this.#outline(ids, palette);
  }

  /** Classes that are not drawn count as one. */
  #outline(ids, palette) {
    const scale = OUTLINES_PX / Math.max(this.width, this.height);
    const size = [this.width, this.height].map((side) => Math.max(1, Math.round(side * scale)));
    [this.lines.width, this.lines.height] = size;
    const shown = Uint8Array.from(palette, (color, id) => (color ? id : 255));
    put(this.lines, outlines(ids, this.width, this.height, ...size, shown));
  }

  /** 0 (the image) .. 100 (the colours). */
  set opacity(percent) {
    this.frame.style.setProperty("--opacity", percent / 100);
  }

  /** How much of the frame's width, from the left, is left without colours, 0 .. 100. */
  set wipe(percent) {
    this.wiped = percent;
    this.#zoomed();
  }

  /** What is said beside the cursor. */
  label(text, color) {
    this.tag.textContent = text;
    this.tag.style.setProperty("--color", color);
  }

  #zoomed() {
    const { left, top, scale, isWhole } = this.zoom;
    const inImage = this.zoom.toImage({ x: this.wiped / 100, y: 0 }).x;
    const style = {
      "--wipe": `${this.wiped}%`,
      "--wiped": `${100 * inImage}%`,
      "--left": `${100 * left}%`,
      "--top": `${100 * top}%`,
      "--zoom": scale,
    };
    for (const [name, value] of Object.entries(style)) this.frame.style.setProperty(name, value);
    this.frame.classList.toggle("zoomed", !isWhole);
    const shownPx = (this.frame.clientWidth * scale) / (this.upload.width || 1);
    this.frame.classList.toggle("pixels", shownPx > 3);
    this.#place();
    this.dispatchEvent(new Event("zoom"));
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
    const { x, y } = this.zoom.toImage(this.#fraction(event));
    this.#point({ x: Math.floor(x * this.width), y: Math.floor(y * this.height) });
  }

  #point(at) {
    this.at = at;
    this.#place();
    this.dispatchEvent(new CustomEvent("point", { detail: at }));
  }

  /** Puts the cursor and what is said beside it where the pixel is now. */
  #place() {
    this.cursor.hidden = this.tag.hidden = this.at === null;
    if (!this.at) return;
    const { x, y } = this.zoom.toFrame({
      x: (this.at.x + 0.5) / this.width,
      y: (this.at.y + 0.5) / this.height,
    });
    this.frame.style.setProperty("--x", `${100 * x}%`);
    this.frame.style.setProperty("--y", `${100 * y}%`);
    this.tag.classList.toggle("left", x > 0.7);
    this.tag.classList.toggle("above", y > 0.85);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own
    const { at } = this;
    if (event.key === "Escape" && at) this.#point(null);
    else if (event.key === "0") this.zoom.reset();
    else if (FACTORS[event.key]) {
      const point = at && { x: (at.x + 0.5) / this.width, y: (at.y + 0.5) / this.height };
      this.zoom.by(FACTORS[event.key], point ? this.zoom.toFrame(point) : undefined);
    } else if (ARROWS[event.key]) this.#step(...ARROWS[event.key], event.shiftKey);
    else return;
    event.preventDefault(); // the arrows would scroll
  }

  #step(right, down, single) {
    const step = single ? 1 : Math.max(1, Math.round(this.width / 50 / this.zoom.scale));
    const from = this.at ?? { x: Math.floor(this.width / 2), y: Math.floor(this.height / 2) };
    const within = (value, size) => Math.min(size - 1, Math.max(0, value));
    const at = {
      x: within(from.x + right * step, this.width),
      y: within(from.y + down * step, this.height),
    };
    if (!this.zoom.isWhole) this.zoom.reveal({ x: at.x / this.width, y: at.y / this.height });
    this.#point(at);
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

/** pixels: Uint32Array of RGBA, as large as the canvas. */
function put(canvas, pixels) {
  const bytes = new Uint8ClampedArray(pixels.buffer);
  const image = new ImageData(bytes, canvas.width, canvas.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
}
