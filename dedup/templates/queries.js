// Search all queries. The table comes with the page, compressed, and is unpacked when somebody searches.
(() => {
  const MOST = 100;
  const search = document.getElementById("query-search");
  if (!search) return;
  const status = document.getElementById("query-status");
  const body = document.querySelector("#query-table tbody");
  let lines = null;

  async function unpack() {
    const packed = Uint8Array.from(atob(document.getElementById("query-data").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return (await new Response(stream).text()).split("\n").slice(0, -1);
  }

  function find(wanted) {
    const found = [];
    let count = 0;
    for (const line of lines) {
      if (!line.slice(0, line.indexOf("\t")).toLowerCase().includes(wanted)) continue;
      count += 1;
      if (found.length < MOST) found.push(line.split("\t"));
    }
    return [found, count];
  }

  function show([found, count]) {
    const rows = found.map((cells) => {
      const row = document.createElement("tr");
      cells.forEach((text, column) => {
        const cell = document.createElement("td");
        if (column) cell.className = "number";
        cell.textContent = column ? Number(text).toLocaleString("en") : text;
        row.append(cell);
      });
      return row;
    });
    body.replaceChildren(...rows);
    const shown = count > MOST ? `, the first ${MOST} shown` : "";
    status.textContent = `${count.toLocaleString("en")} queries${shown}`;
  }

  async function update() {
    const wanted = search.value.trim().toLowerCase();
    if (lines === null) {
      status.textContent = "reading the queries";
      lines = await unpack();
    }
    if (wanted === search.value.trim().toLowerCase()) show(find(wanted));
  }

  search.addEventListener("focus", update, { once: true });
  search.addEventListener("input", update);
})();
