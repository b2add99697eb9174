// A button for each output that the server knows; new ones appear by themselves.

const KNOWN = {
  label_map: ["Label map", "PNG, value = class id"],
  overlay: ["Overlay", "PNG, in the data set's colours"],
  color: ["Colours", "PNG, those of the data set"],
  json: ["Summary", "JSON, shares by class"],
  rle: ["Run lengths", "JSON, masks as in COCO"],
  polygons: ["Polygons", "GeoJSON, with holes"],
  probabilities: ["Probabilities", "NumPy, of every class"],
  confidence: ["Confidence", "PNG, how sure it is"],
};
const FROM_LOGITS = ["probabilities", "confidence"];
const ENDINGS = {
  "image/png": "png",
  "application/json": "json",
  "application/geo+json": "geojson",
  "application/x-npy": "npy",
};

export class Downloads extends EventTarget {
  /** Dispatches "wanted" with the output's name. */
  constructor(root) {
    super();
    this.root = root.querySelector("#downloads");
    this.note = root.querySelector("#downloads-note");
  }

  offer(outputs) {
    this.root.replaceChildren(
      ...outputs.map((output) => {
        const [title, description] = KNOWN[output] ?? [output.replaceAll("_", " "), ""];
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.output = output;
        const [name, what] = ["span", "small"].map((tag) => document.createElement(tag));
        name.textContent = title;
        what.textContent = description;
        button.append(name, what);
        button.addEventListener("click", () =>
          this.dispatchEvent(new CustomEvent("wanted", { detail: output })),
        );
        return button;
      }),
    );
  }

  /** kept: the names of the classes shown, or null for all. contract: of the model. */
  follow(kept, contract) {
    const none = kept?.length === 0;
    for (const button of this.root.children) {
      const lacks = !contract.outputs.logits && FROM_LOGITS.includes(button.dataset.output);
      button.disabled = none || lacks;
      button.lastChild.textContent = lacks
        ? "this model was exported without logits"
        : KNOWN[button.dataset.output]?.[1] ?? "";
    }
    this.note.textContent = none
      ? "Every class is hidden: show one to download it."
      : kept
        ? "Hidden classes are left out."
        : "";
  }

  /** Saves the answer as `<image>.<output>.<ending>`. */
  save(blob, image, output) {
    this.saveAs(blob, fileName(image, output, blob.type));
  }

  saveAs(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
    this.note.textContent = `Saved ${link.download}.`;
  }
}

/** `street.jpg`, "overlay", "image/png" -> `street.overlay.png`. */
export function fileName(image, output, type) {
  const stem = image.replace(/\.[^.]*$/, "") || "image";
  return `${stem}.${output}.${ENDINGS[type.split(";")[0].trim()] ?? "bin"}`;
}
