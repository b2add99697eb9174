// The classes of one answer: how many pixels each has, which are shown, and in which colours.

import { colorsOf } from "./colors.js";

export const VOID = 255;

/** As people read it: `sign_symbol` -> `sign symbol`. */
export function spoken(name) {
  return name.replaceAll("_", " ");
}

export class Classes {
  /** infos: [{id, name, color: [r, g, b]}] of the contract. kind: of colours, "safe" or "data". */
  constructor(infos, kind = "safe") {
    this.infos = infos;
    this.dress(kind);
    this.pixels = new Uint32Array(256);
    this.total = 0;
    this.hidden = new Set();
  }

  count(ids) {
    this.pixels.fill(0);
    for (const id of ids) this.pixels[id]++;
    this.total = ids.length;
  }

  /** Takes other colours: "safe" or "data". */
  dress(kind) {
    this.colors = colorsOf(this.infos, kind, this.background);
  }

  /** 0..1. */
  share(id) {
    return this.total ? this.pixels[id] / this.total : 0;
  }

  /** Those of the answer, the largest first. */
  get present() {
    return this.infos
      .filter(({ id }) => this.pixels[id] > 0)
      .sort((a, b) => this.pixels[b.id] - this.pixels[a.id]);
  }

  get absent() {
    return this.infos.filter(({ id }) => this.pixels[id] === 0);
  }

  nameOf(id) {
    return id in this.infos ? spoken(this.infos[id].name) : "no class";
  }

  colorOf(id) {
    return this.colors.has(id) ? `rgb(${this.colors.get(id).join(" ")})` : "transparent";
  }

  /** The names to ask the server for: null when all are shown. */
  get kept() {
    if (!this.present.some(({ id }) => this.hidden.has(id))) return null;
    return this.present.filter(({ id }) => !this.hidden.has(id)).map(({ name }) => name);
  }

  /** The class that is none of the things looked for, as the server's contract has it. */
  get background() {
    const named = ({ name }) => name.replace(/^[_ ]+|[_ ]+$/g, "").toLowerCase() === "background";
    const isBlack = ({ id, color }) => id === 0 && color.every((value) => value === 0);
    return this.infos.find(named) ?? this.infos.find(isBlack);
  }

  /** The names to ask an overlay for: of several, background is not drawn over the image. */
  get drawn() {
    const kept = this.kept;
    return kept?.length > 1 ? kept.filter((name) => name !== this.background?.name) : kept;
  }

  /** Uint32Array(256) of RGBA as a canvas holds it in memory; 0, transparent, where not drawn. */
  palette() {
    const bytes = new Uint8ClampedArray(256 * 4);
    const { background, drawn } = this;
    for (const { id, name } of this.infos) {
      const isLeft = id === background?.id && !drawn?.includes(name);
      if (!this.hidden.has(id) && !isLeft) bytes.set([...this.colors.get(id), 255], 4 * id);
    }
    return new Uint32Array(bytes.buffer);
  }
}
