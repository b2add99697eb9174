// The model picker, and what its choice is.

import { spoken } from "./classes.js";
import { terms } from "./element.js";
import { Problem, versions } from "./server.js";

const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

export class Models extends EventTarget {
  /** Dispatches "change" when another version is chosen, and for the first. */
  constructor(root) {
    super();
    this.select = root.querySelector("#model");
    this.about = root.querySelector("#about");
    this.knows = root.querySelector("#knows");
    this.versions = [];
    this.select.addEventListener("change", () => this.#changed());
  }

  get chosen() {
    return this.versions[this.select.selectedIndex];
  }

  /** Throws Problem when none is ready. */
  async load() {
    this.versions = await versions();
    if (!this.versions.length) {
      throw new Problem("No model is ready", "They are loading, or none could be: reload the page.");
    }
    const several = new Set(this.versions.map(({ model }) => model)).size < this.versions.length;
    this.select.replaceChildren(
      ...this.versions.map(({ model, description, version, isDefaultModel, isDefaultVersion }) => {
        const option = new Option(several ? `${model} / ${version}` : model);
        option.title = description;
        option.selected = isDefaultModel && isDefaultVersion;
        return option;
      }),
    );
    this.#changed();
  }

  #changed() {
    const { model, description, version, contract, precision, provider } = this.chosen;
    const { architecture, training_data: data, scores } = contract;
    const score = scores.test_mean_iu ?? scores.val_mean_iu ?? scores.mean_iu;
    const rows = {
      ...(description && { For: description }),
      Name: `${model}, version ${version}`,
      Network: architecture,
      Runs: `in ${precision} on ${provider}`,
      "Mean IU": score === undefined ? "not measured" : percent.format(score),
      "Learned from": data.name,
      ...(data.source && { Source: data.source }),
      Licence: data.licence,
    };
    this.about.replaceChildren(...terms(Object.entries(rows)));
    const known = description.replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase());
    this.knows.textContent = `This model knows: ${known || listed(contract.classes)}.`;
    this.dispatchEvent(new Event("change"));
  }
}

/** The names of the classes, the first of them where there are many. */
function listed(infos) {
  const names = infos.map(({ name }) => spoken(name));
  const more = names.length - 12;
  return more > 0 ? `${names.slice(0, 12).join(", ")} and ${more} more` : names.join(", ");
}
