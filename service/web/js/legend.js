// The list of classes: colour, name and share; a click shows or hides one.

import { spoken } from "./classes.js";

const share = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1 });

/** 0.00004 -> "< 0.1%". */
export function shareText(value) {
  return value > 0 && value < 0.0005 ? "< 0.1%" : share.format(value);
}

export class Legend extends EventTarget {
  /** Dispatches "change" when classes were shown or hidden. */
  constructor(root) {
    super();
    this.list = root.querySelector("#legend");
    this.absent = root.querySelector("#absent");
    this.classes = null;
    const all = (hide) => () => {
      for (const { id } of this.classes?.present ?? []) {
        if (hide) this.classes.hidden.add(id);
        else this.classes.hidden.delete(id);
      }
      this.#changed();
    };
    this.showAll = root.querySelector("#show-all");
    this.hideAll = root.querySelector("#hide-all");
    this.showAll.addEventListener("click", all(false));
    this.hideAll.addEventListener("click", all(true));
  }

  /** Before an answer: what the model knows. After: what is in the image. */
  show(classes) {
    this.classes = classes;
    const answered = classes.total > 0;
    this.list.classList.remove("live");
    const rows = answered ? classes.present : classes.infos;
    this.list.replaceChildren(...rows.map((info) => this.#row(info, answered)));
    this.list.classList.toggle("known", !answered);
    this.showAll.hidden = this.hideAll.hidden = !answered;
    const others = answered ? classes.absent.map(({ name }) => spoken(name)) : [];
    this.absent.textContent = others.length ? `Not in this image: ${others.join(", ")}.` : "";
    this.#pressed();
  }

  /** While images follow each other: a row stays where it is and only its share changes, so that a
   * click does not miss it. The classes of an earlier image stay listed. */
  follow(classes) {
    const listed = [...this.list.children].map(({ dataset }) => Number(dataset.id));
    const isNew = this.classes !== classes || !this.list.classList.contains("live");
    const rows = classes.infos.filter(({ id }) => classes.pixels[id] || (!isNew && listed.includes(id)));
    if (isNew || rows.length !== listed.length) {
      this.show(classes);
      this.list.replaceChildren(...rows.map((info) => this.#row(info, true)));
      this.list.classList.add("live");
      this.absent.textContent = "";
      this.#pressed();
    }
    for (const row of this.list.children) {
      const share = classes.share(Number(row.dataset.id));
      row.querySelector(".share").textContent = shareText(share);
      row.querySelector(".amount").style.setProperty("--share", share);
    }
  }

  /** Marks the row of the class under the cursor; null for none. */
  mark(id) {
    for (const row of this.list.children) {
      row.classList.toggle("under-cursor", Number(row.dataset.id) === id);
    }
  }

  #row({ id, name }, answered) {
    const row = document.createElement("li");
    row.dataset.id = id;
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.setProperty("--color", this.classes.colorOf(id));
    const label = document.createElement("span");
    label.className = "name";
    label.textContent = spoken(name);
    if (!answered) {
      row.append(swatch, label);
      return row;
    }
    const amount = document.createElement("span");
    amount.className = "share";
    amount.textContent = shareText(this.classes.share(id));
    const bar = document.createElement("span");
    bar.className = "amount";
    bar.style.setProperty("--share", this.classes.share(id));
    bar.style.setProperty("--color", this.classes.colorOf(id));
    const button = document.createElement("button");
    button.type = "button";
    button.append(swatch, label, amount, bar);
    button.addEventListener("click", () => {
      if (!this.classes.hidden.delete(id)) this.classes.hidden.add(id);
      this.#changed();
    });
    row.append(button);
    return row;
  }

  #pressed() {
    for (const row of this.list.children) {
      const shown = !this.classes.hidden.has(Number(row.dataset.id));
      row.querySelector("button")?.setAttribute("aria-pressed", shown);
    }
  }

  #changed() {
    this.#pressed();
    this.dispatchEvent(new Event("change"));
  }
}
