// Which part of the image the frame shows. Fractions: of the image 0..1 from its left and top, of
// the frame likewise.

const MOST = 16;
const within = (value, low, high) => Math.min(high, Math.max(low, value));

export class Zoom extends EventTarget {
  /** Dispatches "change". */
  constructor() {
    super();
    this.scale = 1;
    [this.left, this.top] = [0, 0]; // where the image begins, in fractions of the frame
  }

  get isWhole() {
    return this.scale === 1;
  }

  toImage({ x, y }) {
    return { x: (x - this.left) / this.scale, y: (y - this.top) / this.scale };
  }

  toFrame({ x, y }) {
    return { x: this.left + x * this.scale, y: this.top + y * this.scale };
  }

  reset() {
    this.#set(1, 0, 0);
  }

  /** Larger by `factor`; the point of the image under `at`, in fractions of the frame, stays. */
  by(factor, at = { x: 0.5, y: 0.5 }) {
    const scale = within(this.scale * factor, 1, MOST);
    const { x, y } = this.toImage(at);
    this.#set(scale, at.x - x * scale, at.y - y * scale);
  }

  /** Moves the image, in fractions of the frame. */
  move(right, down) {
    this.#set(this.scale, this.left + right, this.top + down);
  }

  /** Moves as far as it must so that a point of the image is to be seen. */
  reveal(point) {
    const margin = 0.1;
    const { x, y } = this.toFrame(point);
    this.move(within(x, margin, 1 - margin) - x, within(y, margin, 1 - margin) - y);
  }

  /** The image fills the frame, whatever is asked for. */
  #set(scale, left, top) {
    this.scale = Math.abs(scale - 1) < 0.01 ? 1 : scale;
    this.left = within(left, 1 - this.scale, 0);
    this.top = within(top, 1 - this.scale, 0);
    this.dispatchEvent(new Event("change"));
  }
}
