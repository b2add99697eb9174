// Class ids out of a label map. A canvas would give colours, which classes may share; a palette
// PNG's samples are the ids. Source: PNG Specification, third edition, sections 5, 7, 9 and 11.

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const GREY = 0;
const PALETTE = 3;

/** Blob of an 8-bit palette or grey PNG -> {width, height, ids: Uint8Array of height * width}. */
export async function readIds(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (SIGNATURE.some((byte, index) => bytes[index] !== byte)) throw new Error("not a PNG");
  const view = new DataView(bytes.buffer);
  let width = 0;
  let height = 0;
  const data = [];
  for (let at = SIGNATURE.length; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const start = at + 8;
    if (kind === "IHDR") {
      width = view.getUint32(start);
      height = view.getUint32(start + 4);
      const [depth, color, , , interlace] = bytes.subarray(start + 8, start + 13);
      if (depth !== 8 || (color !== PALETTE && color !== GREY) || interlace !== 0) {
        throw new Error(`no label map: depth ${depth}, colour type ${color}, interlace ${interlace}`);
      }
    } else if (kind === "IDAT") {
      data.push(bytes.subarray(start, start + length));
    }
    at = start + length + 4; // the checksum
  }
  const inflated = new Blob(data).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(inflated).arrayBuffer());
  if (width === 0 || rows.length !== height * (width + 1)) throw new Error("a PNG cut short");
  return { width, height, ids: unfiltered(rows, width, height) };
}

/** Rows of a filter number and `width` samples of one byte -> the samples. */
function unfiltered(rows, width, height) {
  const out = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (width + 1)];
    const row = rows.subarray(y * (width + 1) + 1, (y + 1) * (width + 1));
    const now = out.subarray(y * width, (y + 1) * width);
    const above = y > 0 ? out.subarray((y - 1) * width, y * width) : new Uint8Array(width);
    const predict = PREDICTORS[filter];
    if (filter === 0) {
      now.set(row);
    } else if (predict) {
      for (let x = 0; x < width; x++) {
        const left = x > 0 ? now[x - 1] : 0;
        now[x] = row[x] + predict(left, above[x], x > 0 ? above[x - 1] : 0);
      }
    } else {
      throw new Error(`PNG filter ${filter}`);
    }
  }
  return out;
}

/** By filter number: None, Sub, Up, Average, Paeth. */
const PREDICTORS = [
  () => 0,
  (left) => left,
  (left, above) => above,
  (left, above) => (left + above) >> 1,
  (left, above, corner) => {
    const guess = left + above - corner;
    const toLeft = Math.abs(guess - left);
    const toAbove = Math.abs(guess - above);
    const toCorner = Math.abs(guess - corner);
    if (toLeft <= toAbove && toLeft <= toCorner) return left;
    return toAbove <= toCorner ? above : corner;
  },
];
