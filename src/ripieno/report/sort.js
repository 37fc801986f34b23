// Sorts a table by the column whose heading is pressed, and the other way round when it is pressed again.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const [column, heading] of [...table.tHead.rows[0].cells].entries()) {
    heading.querySelector("button").addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.key;
      const numbers = heading.dataset.kind === "number";
      const order = (a, b) => {
        if (!numbers) return key(a).localeCompare(key(b));
        return (key(a) === "" ? Infinity : Number(key(a))) - (key(b) === "" ? Infinity : Number(key(b))) || 0;
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? order(a, b) : order(b, a)));
      table.tBodies[0].append(...rows);
    });
  }
}
