// The value under the pointer, tables that sort, and the curves of a row or of a name in the legend.
const tip = document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip", hidden: true }));

for (const svg of document.querySelectorAll("figure svg")) {
  const lines = [...svg.querySelectorAll(".line")];
  let points = null, mark = null;
  const show = (event) => {
    points ??= lines.flatMap((line) => {
      const values = line.dataset.values.split(" ");
      return line.getAttribute("points").split(" ").map((point, i) => [...point.split(",").map(Number), line, values[i]]);
    });
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = null, least = 40 ** 2;
    for (const point of points) {
      const distance = (point[0] - at.x) ** 2 + (point[1] - at.y) ** 2;
      if (distance < least) [best, least] = [point, distance];
    }
    if (!best) return leave();
    const [x, y, line, value] = best, [step, figure] = value.split(",");
    if (!mark) {
      mark = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "circle"));
      mark.setAttribute("class", "mark");
      mark.setAttribute("r", 4);
    }
    mark.setAttribute("cx", x);
    mark.setAttribute("cy", y);
    svg.classList.toggle("chosen", lines.length > 1);
    for (const other of lines) other.classList.toggle("on", other === line);
    tip.textContent = `${line.dataset.name ? line.dataset.name + ": " : ""}${figure} at ${step}`;
    tip.hidden = false;
    const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(event.pageX + 14, right))}px`;
    tip.style.top = `${event.pageY + 14}px`;
  };
  const leave = () => {
    tip.hidden = true;
    mark?.remove();
    mark = null;
    svg.classList.remove("chosen");
    for (const line of lines) line.classList.remove("on");
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave()); // a finger has to be lifted
  document.addEventListener("pointerdown", (event) => svg.contains(event.target) || leave());
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th[data-sort]").forEach((head) => {
    head.addEventListener("click", () => {
      const column = head.cellIndex, falling = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // rows without a value stay last
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
        return falling ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

const choose = (index) => { // null for none
  for (const part of document.querySelectorAll("tr[data-index], .line")) part.classList.toggle("on", part.dataset.index === index);
  document.body.classList.toggle("chosen", index !== null);
};
for (const chosen of document.querySelectorAll("tr[data-index], .legend [data-index]")) {
  chosen.addEventListener("pointerenter", () => choose(chosen.dataset.index));
  chosen.addEventListener("pointerleave", (event) => event.pointerType === "touch" || choose(null));
  chosen.addEventListener("pointerdown", () => choose(chosen.dataset.index));
}
document.addEventListener("pointerdown", () => choose(null), true); // capturing: before a row or name is chosen
