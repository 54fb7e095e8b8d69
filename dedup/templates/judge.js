// Judge the pairs of the page blind: two images, no scores, in random order. The verdicts are saved to a file.
(() => {
  const dialog = document.getElementById("judge");
  const open = document.getElementById("judge-open");
  if (!dialog || !open || !dialog.showModal) return;
  const field = (name) => dialog.querySelector(`[data-judge="${name}"]`);
  const verdicts = new Map();
  const keys = { s: "same", d: "different", u: "unsure" };
  let pairs = [];
  let at = 0;

  function shuffled(list) {
    for (let place = list.length - 1; place > 0; place -= 1) {
      const other = Math.floor(Math.random() * (place + 1));
      [list[place], list[other]] = [list[other], list[place]];
    }
    return list;
  }

  function show() {
    const done = at >= pairs.length;
    field("done").hidden = !done;
    field("asking").hidden = done;
    field("progress").textContent = `${Math.min(at + 1, pairs.length)} of ${pairs.length}, ${verdicts.size} judged`;
    const images = field("images");
    images.textContent = "";
    if (done) return;
    for (const image of pairs[at].querySelectorAll(".thumbs img")) images.append(image.cloneNode());
  }

  function say(verdict) {
    if (at >= pairs.length) return;
    const { eval: set, evalId, uid } = pairs[at].dataset;
    verdicts.set(pairs[at], { eval: set, eval_id: evalId, uid, verdict });
    at += 1;
    show();
  }

  function save() {
    const judge = field("name").value.trim();
    if (!judge) {  // the reviews of two people without names would be one person's
      field("name").focus();
      field("name").placeholder = "your name";
      return;
    }
    const text = JSON.stringify({ judge, verdicts: [...verdicts.values()] }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `review-${judge.replace(/[^A-Za-z0-9_-]+/g, "_")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  open.hidden = false;
  open.addEventListener("click", () => {
    if (!pairs.length) {
      const whole = [...document.querySelectorAll(".pair")].filter((pair) => pair.querySelectorAll(".thumbs img").length === 2);
      pairs = shuffled(whole);
    }
    dialog.showModal();
    show();
  });
  for (const button of dialog.querySelectorAll("[data-verdict]")) button.addEventListener("click", () => say(button.dataset.verdict));
  field("back").addEventListener("click", () => { at = Math.max(0, at - 1); show(); });
  field("save").addEventListener("click", save);
  field("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key in keys) say(keys[key]);
    else if (key === "backspace") { at = Math.max(0, at - 1); show(); }
    else return;
    event.preventDefault();
  });
})();
