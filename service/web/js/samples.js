// Images to try a model with, drawn by the project: those that show what the model knows.

import { element } from "./element.js";
import { Problem } from "./server.js";

const SAMPLES = [
  { file: "street.jpg", title: "A street", classes: ["road", "car", "building"] },
  { file: "house.jpg", title: "A house", classes: ["facade", "window", "vegetation"] },
  { file: "meadow.jpg", title: "A meadow", classes: ["sheep"] },
];

export class Samples extends EventTarget {
  /** Dispatches "image" with a File, "problem" with a Problem. */
  constructor(root) {
    super();
    this.list = root.querySelector("#samples");
  }

  /** infos: classes of the contract. Of a model that knows others, no sample is shown. */
  offer(infos) {
    const known = new Set(infos.map(({ name }) => name));
    const fitting = SAMPLES.filter(({ classes }) => classes.every((name) => known.has(name)));
    this.list.replaceChildren(...fitting.map((sample) => this.#item(sample)));
    this.list.hidden = fitting.length === 0;
  }

  #item({ file, title }) {
    const image = element("img");
    image.src = `web/samples/${file}`;
    image.alt = "";
    image.width = 96;
    image.height = 72;
    const button = element("button", "", image, element("span", "", `Try: ${title.toLowerCase()}`));
    button.type = "button";
    button.addEventListener("click", () => this.#take(file));
    return element("li", "", button);
  }

  async #take(name) {
    try {
      const response = await fetch(`web/samples/${name}`);
      if (!response.ok) throw new Error(`the server says ${response.status}`);
      const detail = new File([await response.blob()], name, { type: "image/jpeg" });
      this.dispatchEvent(new CustomEvent("image", { detail }));
    } catch (error) {
      const detail = new Problem("No sample", `It could not be had: ${error.message}.`);
      this.dispatchEvent(new CustomEvent("problem", { detail }));
    }
  }
}
