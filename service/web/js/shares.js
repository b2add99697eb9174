// The shares of the classes in several images, as a table for other programs. Source: RFC 4180.

const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

/** Text of a CSV file: a row for each image that was answered, a column for each class that any of
 * their models knows, 0..1. A class that the row's model does not know is left empty. */
export function sharesTable(jobs) {
  const answered = jobs.filter(({ state, answer }) => state === "done" && answer);
  const classesOf = ({ answer }) => answer.version.contract.classes;
  const names = [...new Set(answered.flatMap((job) => classesOf(job).map(({ name }) => name)))];
  const rows = answered.map((job) => {
    const { version, width, height, pixels } = job.answer;
    const share = (name) => {
      const info = classesOf(job).find((one) => one.name === name);
      return info ? (pixels[info.id] / (width * height)).toFixed(6) : "";
    };
    const about = [job.file.name, width, height, version.model, version.version];
    return [...about, ...names.map(share)];
  });
  const head = ["image", "width", "height", "model", "version", ...names];
  return [head, ...rows].map((row) => row.map(String).map(quoted).join(",") + "\r\n").join("");
}
