// The stages of one answer against the server's latency target.

const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

export class Timing {
  constructor(root) {
    this.total = root.querySelector("#timing-total");
    this.stages = root.querySelector("#stages");
    this.target = root.querySelector("#target");
    this.list = root.querySelector("#timing");
    this.note = root.querySelector("#timing-note");
  }

  /** stages: [{name, ms}] in their order. targetMs: the server's. tripMs: as the page saw it. */
  show(stages, targetMs, tripMs) {
    const totalMs = stages.reduce((sum, { ms }) => sum + ms, 0);
    const late = totalMs > targetMs;
    // The target stands at three quarters, so that being late has room to show.
    const fullMs = Math.max(targetMs / 0.75, totalMs);
    this.stages.replaceChildren(
      ...stages.map(({ ms }, index) => {
        const part = document.createElement("span");
        part.style.setProperty("--part", ms / fullMs);
        part.dataset.stage = index;
        return part;
      }),
    );
    this.stages.classList.toggle("late", late);
    this.target.style.setProperty("--at", `${(100 * targetMs) / fullMs}%`);
    this.total.textContent = `${milliseconds(totalMs)} of ${milliseconds(targetMs)}`;
    this.total.classList.toggle("late", late);
    this.list.replaceChildren(
      ...stages.map(({ name, ms }, index) => {
        const [row, term, value] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
        row.dataset.stage = index;
        term.textContent = name;
        value.textContent = milliseconds(ms);
        row.append(term, value);
        return row;
      }),
    );
    const spared = Math.abs(targetMs - totalMs);
    const verdict = late
      ? `${milliseconds(spared)} over the target.`
      : `Within the target, ${milliseconds(spared)} to spare.`;
    this.note.textContent = `${verdict} ${milliseconds(tripMs)} with upload and download.`;
  }
}
