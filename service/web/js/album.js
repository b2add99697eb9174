// The list of the images that were given: a small copy, the name, and how far each is.

import { spoken } from "./classes.js";
import { element } from "./element.js";
import { shareText } from "./legend.js";

const SAID = { waiting: "waiting", busy: "being segmented", cancelled: "cancelled" };

export class Album extends EventTarget {
  /** Dispatches "chosen" with a job. */
  constructor(root) {
    super();
    this.box = root.querySelector("#album");
    this.list = root.querySelector("#album-list");
    this.title = root.querySelector("#album-title");
    this.items = new Map(); // job -> what shows it
  }

  /** jobs: all there are. shown: the one that is looked at. A single one needs no list. */
  show(jobs, shown) {
    this.box.hidden = jobs.length < 2;
    const count = (state) => jobs.filter((job) => job.state === state).length;
    const failed = count("failed");
    this.title.textContent =
      `${count("done")} of ${jobs.length} images` + (failed ? `, ${failed} failed` : "");
    for (const job of this.items.keys()) if (!jobs.includes(job)) this.items.delete(job);
    for (const job of jobs) {
      if (!this.items.has(job)) this.items.set(job, this.#item(job));
      this.#fill(job, job === shown);
    }
    const wanted = jobs.map((job) => this.items.get(job).item);
    const same = wanted.length === this.list.children.length && wanted.every((item) => item.isConnected);
    if (!same) this.list.replaceChildren(...wanted);
  }

  #item(job) {
    const thumbnail = element("span", "thumbnail");
    const said = element("span", "small");
    const button = element("button", "", thumbnail, element("span", "name", job.file.name), said);
    button.type = "button";
    button.addEventListener("click", () =>
      this.dispatchEvent(new CustomEvent("chosen", { detail: job })),
    );
    return { item: element("li", "", button), button, thumbnail, said };
  }

  #fill(job, isShown) {
    const { button, thumbnail, said } = this.items.get(job);
    button.dataset.state = job.state;
    button.setAttribute("aria-current", isShown);
    if (job.thumbnail && job.thumbnail !== thumbnail.firstChild) {
      thumbnail.replaceChildren(job.thumbnail);
    }
    said.textContent =
      job.state === "done" ? mostly(job.answer) : SAID[job.state] ?? job.problem?.title ?? "failed";
  }
}

/** "road 41.2%, building 30.1%". */
function mostly({ version, pixels, width, height }) {
  return version.contract.classes
    .filter(({ id }) => pixels[id] > 0)
    .sort((a, b) => pixels[b.id] - pixels[a.id])
    .slice(0, 2)
    .map(({ id, name }) => `${spoken(name)} ${shareText(pixels[id] / (width * height))}`)
    .join(", ");
}
