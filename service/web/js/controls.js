// What changes how the answer is shown: sliders, zoom buttons.

const $ = (id) => document.getElementById(id);

/** A slider with its value beside it. show: called with 0..100, now and when it is moved. */
export function slider(id, show) {
  const input = $(id);
  const moved = () => {
    $(`${id}-value`).textContent = `${input.value}%`;
    input.setAttribute("aria-valuetext", `${input.value}%`);
    show(Number(input.value));
  };
  input.addEventListener("input", moved);
  moved();
}

/** The buttons over the image, and the wipe that is dragged there, for a View. */
export function overImage(view) {
  const { zoom } = view;
  $("zoom-in").addEventListener("click", () => zoom.by(1.5));
  $("zoom-out").addEventListener("click", () => zoom.by(1 / 1.5));
  $("zoom-whole").addEventListener("click", () => zoom.reset());
  zoom.addEventListener("change", () => {
    $("zoom-value").textContent = `${Math.round(100 * zoom.scale)}%`;
    $("zoom-whole").hidden = zoom.isWhole;
  });
  view.addEventListener("wipe", ({ detail }) => {
    $("wipe").value = detail;
    $("wipe").dispatchEvent(new Event("input"));
  });
}
