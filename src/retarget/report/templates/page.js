// Sorts tables by a column and filters their rows; the page is complete without it.
(() => {
  const seconds = { h: 3600, min: 60, s: 1 };
  const raised = (power) => power.replace(/./g, (sign) => (sign === "\u207b" ? "-" : "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(sign)));
  const number = (text) => {
    const plain = text.replace(/\u2212/g, "-").replace(/(\d)\u202f(?=\d)/g, "$1");
    const times = [...plain.matchAll(/(\d*\.?\d+) (h|min|s)\b/g)];
    if (times.length && times[0].index === 0) {
      return times.reduce((sum, [, count, unit]) => sum + count * seconds[unit], 0);
    }
    const found = plain.match(/([-+]?\d*\.?\d+)(?:×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?/);
    return found ? Number(found[1] + (found[2] ? `e${raised(found[2])}` : "")) : null;
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
