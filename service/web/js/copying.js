// The button that copies a text.

/** button: says for two seconds what it did. source: the element whose text is copied. */
export function copyOnClick(button, source) {
  const title = button.textContent;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      // Without https there is no clipboard: select it, so that Ctrl+C does it.
      getSelection().selectAllChildren(source);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = title), 2000);
  });
}
