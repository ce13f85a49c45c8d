// Sorts tables by a column and filters their rows; the page is complete without it.
(() => {
  const number = (text) => {
    const found = text.replace(/\u2212/g, "-").replace(/(\d)\u202f(?=\d)/g, "$1").match(/[-+]?\d*\.?\d+/);
    return found ? Number(found[0]) : null;
  };
  const compare = (a, b) => (a === null) - (b === null) || (typeof a === "string" ? a.localeCompare(b) : a - b);
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => (at ? number(row.cells[at].textContent) : row.cells[0].textContent);
        const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b)));
        table.tBodies[0].append(...rows);
      });
    });
  }
  for (const table of document.querySelectorAll("table.sortable, table.claims")) {
    const rows = [...table.querySelectorAll("tbody tr:not(.heading)")];
    if (rows.length < 9) continue;
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.type = "search";
    label.className = "filter";
    label.append("Rows with ", input);
    (table.closest(".scroll") || table).before(label);
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }
})();
