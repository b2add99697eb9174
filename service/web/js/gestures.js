// Zooming and moving with mouse, wheel and fingers.

/** What a frame's events do to its zoom. One finger or the mouse moves an enlarged image, two fingers
 * and the wheel with Ctrl change its size; the wheel alone scrolls the page, as everywhere. */
export function followGestures(frame, zoom) {
  const down = new Map(); // pointer -> where it is, in fractions of the frame
  const place = (event) => {
    const box = frame.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  };
  const lift = (event) => {
    down.delete(event.pointerId);
    if (!down.size) frame.classList.remove("moving");
  };

  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.target.closest(".split")) return;
    down.set(event.pointerId, place(event));
    if (!zoom.isWhole) frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    const before = down.get(event.pointerId);
    if (!before) return;
    const now = place(event);
    const other = [...down].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y);
      zoom.by(apart(now) / (apart(before) || 1), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
    } else if (!zoom.isWhole) {
      frame.classList.add("moving");
      zoom.move(now.x - before.x, now.y - before.y);
    }
    down.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    frame.addEventListener(end, lift);
  }
  frame.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault(); // the browser would enlarge the page
      zoom.by(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 100), place(event));
    },
    { passive: false },
  );
  frame.addEventListener("dblclick", (event) => {
    if (event.target.closest(".split")) return;
    if (zoom.isWhole) zoom.by(2.5, place(event));
    else zoom.reset();
  });
}
