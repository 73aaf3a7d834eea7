// A click on a figure opens it large; there it grows further, and can be moved about. The page reads the same without.
{
  const box = document.createElement("dialog");
  box.className = "zoom";
  const bar = document.createElement("div");
  const room = document.createElement("div");
  room.className = "room";
  box.append(bar, room);
  document.body.append(box);
  let drawing = null, home = null, width = 100;
  const size = (percent) => {
    width = Math.min(600, Math.max(50, percent));
    if (drawing) drawing.style.width = `${width}%`;
  };
  for (const [label, words, act] of [
    ["−", "smaller", () => size(width / 1.4)],
    ["+", "larger", () => size(width * 1.4)],
    ["close", "close", () => box.close()],
  ]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.setAttribute("aria-label", words);
    button.addEventListener("click", act);
    bar.append(button);
  }
  box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
  box.addEventListener("close", () => {
    drawing.style.width = "";
    home.append(drawing);
    home.focus();
    drawing = null;
  });
  for (const holder of document.querySelectorAll("figure .drawing")) {
    const svg = holder.querySelector("svg");
    if (!svg) continue;
    holder.tabIndex = 0;
    holder.setAttribute("role", "button");
    holder.setAttribute("aria-label", "enlarge this figure");
    const open = () => {
      if (drawing || !holder.contains(svg)) return;
      [drawing, home] = [svg, holder];
      holder.style.minHeight = `${holder.offsetHeight}px`;
      room.append(svg);
      size(100);
      box.showModal();
    };
    holder.addEventListener("click", open);
    holder.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
  }
}
