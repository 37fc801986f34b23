// The page's question explorer. Unpacks the block that explorer.py wrote, and shows it with question.js.
(() => {
  const { element, grouped, percent, counted, capital } = oneQuestion;
  const PAGE = 50;
  const STEPS = 1000; // probabilities come in thousandths
  const PLACES = { mutual_information: 3, choices: 0 };
  const at = (name) => document.getElementById(`explorer-${name}`);
  const section = document.getElementById("explorer");

  function shown(measure, value) {
    if (Number.isNaN(value)) return "–";
    if (measure === "correct") return value ? "✓ right" : "✗ wrong";
    return value === Infinity ? "∞" : value.toFixed(PLACES[measure] ?? 2);
  }

  // Unpacking

  async function inflate(text) {
    const characters = atob(text);
    const bytes = new Uint8Array(characters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  // The columns are read in the order in which explorer.py writes them.
  function unpack(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    let offset = 8 + length;
    const take = (Kind, count) => {
      const column = new Kind(buffer, offset, count);
      offset += Math.ceil(column.byteLength / 4) * 4;
      return column;
    };
    const N = header.sets.reduce((sum, set) => sum + set.ids.length, 0);
    const values = {};
    for (const [name] of header.measures) values[name] = take(Float32Array, N);
    const all = { N, values, measures: header.measures, sets: header.sets, setOf: new Uint16Array(N) };
    all.target = take(Int16Array, N);
    all.answer = take(Uint16Array, N);
    all.size = take(Uint16Array, N);
    let start = 0;
    header.sets.forEach((set, s) => {
      set.start = start;
      set.probs = take(Uint16Array, set.ids.length * (1 + set.drawn) * set.width);
      set.votes = take(Uint16Array, set.ids.length * set.members.length);
      all.setOf.fill(s, start, (start += set.ids.length));
    });
    return all;
  }

  function question(all, i) {
    const set = all.sets[all.setOf[i]];
    const n = i - set.start;
    const subject = set.subject ? set.subject[n] : -1;
    const passage = set.passage ? set.passage[n] : -1;
    return {
      set,
      n,
      id: set.ids[n],
      text: set.questions[n],
      choices: set.choices[n] ?? Array.from({ length: all.size[i] }, () => ""),
      subject: subject < 0 ? "" : set.subjects[subject],
      passage: passage < 0 ? "" : set.passages[passage],
      // The ensemble's row is 0, the drawn members' rows follow.
      probs: (row, k) => set.probs[(n * (1 + set.drawn) + row) * set.width + k] / STEPS,
      votes: set.votes.subarray(n * set.members.length, (n + 1) * set.members.length),
    };
  }

  const letter = (all, i, k) => oneQuestion.letter(all.size[i], k);

  // Words for one question

  function verdict(all, i, q) {
    const answer = all.answer[i];
    const target = all.target[i];
    const given = `it answered ${letter(all, i, answer)}, at ${percent(q.probs(0, answer), 1)}`;
    if (target < 0) return `${capital(given)}; the right choice is not known.`;
    if (all.values.correct[i]) return `Right: ${given}.`;
    return `Wrong: ${given}; the right choice, ${letter(all, i, target)}, got ${percent(q.probs(0, target), 1)}.`;
  }

  function doubt(all, i, q) {
    const entropy = all.values.predictive_entropy;
    const { start, ids } = q.set;
    let [below, above] = [0, 0]; // equal ones are neither
    for (const other of entropy.subarray(start, start + ids.length)) {
      below += other < entropy[i];
      above += other > entropy[i];
    }
    const share = (some) => percent(some / (ids.length - 1));
    const how = below > above ? `less sure than on ${share(below)}` : `surer than on ${share(above)}`;
    const than = ids.length > 1 ? `; ${how} of this set's questions` : "";
    const apart = q.set.members.length > 1 ? (all.values.mutual_information?.[i] ?? null) : null;
    return oneQuestion.doubt(entropy[i], apart, all.size[i], than);
  }

  // One question, opened

  // Those whose probabilities are in the page, which holds all of them unless that would be too large.
  const drawn = (q) => q.set.members.slice(0, q.set.drawn);

  function choice(all, i, q, k) {
    const isRight = k === all.target[i];
    const tags = [];
    if (isRight) tags.push(element("span", { class: "tag right" }, "✓ right choice"));
    if (k === all.answer[i]) tags.push(element("span", { class: "tag" }, "● its answer"));
    const members = scattered(q) ? drawn(q).map((member, m) => [member, q.probs(1 + m, k)]) : [];
    const text = q.choices[k] || (q.text === null ? "(text not stored)" : "(empty)");
    return oneQuestion.choice(isRight ? "is-right" : "", letter(all, i, k), text, tags, q.probs(0, k), members);
  }

  const scattered = (q) => q.set.members.length > 1 && q.set.drawn > 0;

  function numbers(all, i, q) {
    const each = (row) => Array.from({ length: all.size[i] }, (_, k) => q.probs(row, k));
    const heads = each(0).map((_, k) => letter(all, i, k) + (k === all.target[i] ? " ✓" : ""));
    const members = drawn(q).map((m, j) => [`Member ${m}`, q.votes[j], each(1 + j)]);
    const whose = members.length < q.set.members.length ? "Probabilities" : "Every member's probabilities";
    return oneQuestion.numbers(heads, [["Ensemble", all.answer[i], each(0)], ...members], whose);
  }

  function opened(all, i) {
    const q = question(all, i);
    const where = [q.set.name, q.set.out ? "out of domain" : "in domain", q.subject, `id ${q.id}`].filter(Boolean);
    const why = [oneQuestion.votes(q.votes, all.size[i], all.answer[i]), ...doubt(all, i, q)];
    const list = element("ul", { class: "choices" });
    for (let k = 0; k < all.size[i]; k++) list.append(choice(all, i, q, k));
    const more = q.set.members.length > 1 ? q.set.members.length - q.set.drawn : 0;
    const marked = more ? `the first ${counted(q.set.drawn)} members'` : "each member's";
    const unlisted = `${grouped(q.set.members.length)} members answered; ${grouped(more)} are not listed.`;
    const measures = all.measures
      .filter(([name]) => name !== "correct" && name !== "choices")
      .map(([name, label]) => `${label} ${shown(name, all.values[name][i])}`);
    return [
      element("p", { class: "note" }, element("bdi", {}, where.join(" · "))),
      q.passage ? element("blockquote", { class: "text", dir: "auto", tabindex: "0" }, q.passage) : "",
      element(
        "h3",
        { class: (q.text ?? "").length > 250 ? "text long" : "text", dir: "auto", id: "explorer-question", tabindex: "-1" },
        q.text ?? `Question ${q.id} (its text is not stored)`,
      ),
      element("p", {}, element("strong", { class: judged(all, i) }, verdict(all, i, q))),
      element("ul", { class: "why" }, ...why.map((said) => element("li", {}, said))),
      list,
      oneQuestion.key(scattered(q) ? marked : ""),
      element("h4", {}, "In numbers"),
      numbers(all, i, q),
      more ? element("p", { class: "note" }, unlisted) : "",
      element("p", { class: "note" }, "Underlined: what each prefers. ✓: the right choice. ", measures.join(" · "), "."),
    ].filter(Boolean);
  }

  const judged = (all, i) => (all.target[i] < 0 ? "" : all.values.correct[i] ? "right" : "wrong");

  // The list of questions

  function explore(all) {
    const { N, values, measures, sets } = all;
    const known = all.target.some((target) => target >= 0);
    const several = sets.length > 1;
    const mixed = sets.some((set) => set.out) && sets.some((set) => !set.out);
    const haystack = Array.from({ length: N }, (_, i) => {
      const q = question(all, i);
      return [q.text ?? "", ...q.choices, q.passage, q.subject, q.id].join("\n").toLowerCase();
    });
    const state = { sort: known ? "nll" : "predictive_entropy", descending: true, page: 0, place: 0 };
    let sorted = [];
    let found = [];

    function fill(select, options) {
      select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    }

    const domains = mixed ? [["in", "All in domain"], ["out", "All out of domain"]] : [];
    fill(at("set"), [["all", several ? "All sets" : sets[0].name], ...domains]);
    if (several) sets.forEach((set, s) => at("set").append(element("option", { value: `${s}` }, set.name)));
    const unknown = all.target.some((target) => target < 0) ? [["unknown", "Not known"]] : [];
    fill(at("answered"), [["any", "Right or wrong"], ["right", "Right"], ["wrong", "Wrong"], ...unknown]);
    fill(at("sort"), measures.map(([name, label]) => [name, label]));
    at("handover").hidden = !known;

    const inSet = (s) => {
      const chosen = at("set").value;
      if (chosen === "in" || chosen === "out") return sets[s].out === (chosen === "out");
      return chosen === "all" || Number(chosen) === s;
    };

    function fillSubjects() {
      const names = new Set(sets.flatMap((set, s) => (inSet(s) ? set.subjects : [])));
      const before = at("subject").value;
      fill(at("subject"), [["", "All"], ...[...names].sort().map((name) => [`=${name}`, name.replaceAll("_", " ")])]);
      at("subject").value = names.has(before.slice(1)) ? before : "";
      at("subject-label").hidden = names.size === 0;
    }

    function sort() {
      const column = values[state.sort];
      const sign = state.descending ? -1 : 1;
      // What is not known stands last either way.
      sorted = Array.from({ length: N }, (_, i) => i).sort((a, b) => {
        const x = column[a];
        const y = column[b];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
        return x === y ? a - b : x < y ? -sign : sign;
      });
    }

    function filter() {
      // Words in any order; what stands in quotation marks, as it stands.
      const words = [...at("search").value.toLowerCase().matchAll(/"([^"]+)"|\S+/g)].map(([all_, phrase]) => phrase ?? all_);
      const subject = at("subject").value.slice(1);
      const answered = at("answered").value;
      const sets_ = sets.map((_, s) => inSet(s));
      const matches = sorted.filter((i) => {
        const set = sets[all.setOf[i]];
        if (!sets_[all.setOf[i]]) return false;
        if (subject && (!set.subject || set.subjects[set.subject[i - set.start]] !== subject)) return false;
        return words.every((word) => haystack[i].includes(word));
      });
      const wanted = { right: (c) => c === 1, wrong: (c) => c === 0, unknown: Number.isNaN }[answered];
      found = wanted ? matches.filter((i) => wanted(values.correct[i])) : matches;
      return matches;
    }

    // Wilson 1927
    function interval(share, n) {
      const z = 1.96;
      const middle = (share + (z * z) / (2 * n)) / (1 + (z * z) / n);
      const half = (z / (1 + (z * z) / n)) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
      return `(${percent(middle - half)} to ${percent(middle + half)})`;
    }

    function handOver(matches) {
      const threshold = Number(at("confidence").value) / 100;
      at("threshold").textContent = percent(threshold);
      const home = at("set").value === "all" && mixed;
      const asked = matches.filter((i) => all.target[i] >= 0 && !(home && sets[all.setOf[i]].out));
      const kept = asked.filter((i) => values.confidence[i] >= Math.fround(threshold));
      const right = (some) => some.reduce((sum, i) => sum + values.correct[i], 0);
      const judge = (some) => `${percent(right(some) / some.length)} right ${interval(right(some) / some.length, some.length)}`;
      const of = home ? "questions in domain" : "questions shown";
      if (asked.length === 0) {
        at("handed").textContent = `No ${of} have a known answer.`;
        return;
      }
      const over = asked.length - kept.length;
      const rest = asked.filter((i) => values.confidence[i] < Math.fround(threshold));
      at("handed").textContent =
        `Answers ${grouped(kept.length)} of ${grouped(asked.length)} ${of}` +
        (kept.length ? `, ${judge(kept)}. ` : ". ") +
        (over ? `Hands over ${grouped(over)}, on which it would have been ${judge(rest)}. ` : "Hands over none. ") +
        `Answering all: ${judge(asked)}.`;
    }

    function row(i, place) {
      const q = question(all, i);
      const open = element("button", { type: "button", dir: "auto", "data-place": `${place}` });
      open.append((q.text ?? `Question ${q.id}`).slice(0, 400));
      const about = [several ? q.set.name : "", q.subject.replaceAll("_", " ")].filter(Boolean).join(" · ");
      const first = element("th", { scope: "row", role: "rowheader" }, open);
      if (about) first.append(element("small", {}, element("bdi", {}, about)));
      const cells = measures.map(([name, label]) => {
        const kind = name === "correct" ? ["", "right", "wrong"][all.target[i] < 0 ? 0 : values.correct[i] ? 1 : 2] : "number";
        return element("td", { class: kind, role: "cell", "data-label": label }, shown(name, values[name][i]));
      });
      return element("tr", { role: "row", "data-place": `${place}` }, first, ...cells);
    }

    function head() {
      const cells = measures.map(([name, label]) => {
        const sorted_ = name !== state.sort ? "none" : state.descending ? "descending" : "ascending";
        const button = element("button", { type: "button", "data-sort": name }, label);
        const kind = name === "correct" ? "" : "number";
        return element("th", { scope: "col", role: "columnheader", class: kind, "aria-sort": sorted_ }, button);
      });
      const first = element("th", { scope: "col", role: "columnheader" }, "Question");
      at("table").tHead.rows[0].replaceChildren(first, ...cells);
      at("sort").value = state.sort;
      const ends = state.sort === "correct" ? ["Right first", "Wrong first"] : ["Highest first", "Lowest first"];
      at("direction").textContent = ends[state.descending ? 0 : 1];
    }

    function page() {
      const pages = Math.max(1, Math.ceil(found.length / PAGE));
      state.page = Math.min(Math.max(state.page, 0), pages - 1);
      const start = state.page * PAGE;
      const some = found.slice(start, start + PAGE);
      at("table").tBodies[0].replaceChildren(...some.map((i, j) => row(i, start + j)));
      at("table").hidden = some.length === 0;
      at("page").textContent = `page ${grouped(state.page + 1)} of ${grouped(pages)}`;
      at("back").disabled = state.page === 0;
      at("forth").disabled = state.page === pages - 1;
    }

    function refresh() {
      const matches = filter();
      handOver(matches);
      state.page = 0;
      page();
      const label = measures.find(([name]) => name === state.sort)[1];
      at("count").textContent = found.length
        ? `${grouped(found.length)} of ${grouped(N)} questions, by ${label}, ${at("direction").textContent.toLowerCase()}.`
        : "No question matches. “Show all” takes every filter away.";
    }

    function resort(name, descending) {
      Object.assign(state, { sort: name, descending });
      head();
      sort();
      refresh();
    }

    function open(place) {
      state.place = place;
      at("body").replaceChildren(...opened(all, found[place]));
      at("place").textContent = `${grouped(place + 1)} of ${grouped(found.length)}`;
      at("previous").disabled = place === 0;
      at("next").disabled = place === found.length - 1;
      if (!at("dialog").open) at("dialog").showModal();
      at("dialog").scrollTop = 0;
      at("question").focus();
    }

    for (const name of ["set", "subject", "answered"]) {
      at(name).addEventListener("change", () => {
        if (name === "set") fillSubjects();
        refresh();
      });
    }
    at("search").addEventListener("input", refresh);
    at("confidence").addEventListener("input", () => handOver(filter()));
    at("sort").addEventListener("change", () => resort(at("sort").value, true));
    at("direction").addEventListener("click", () => resort(state.sort, !state.descending));
    at("reset").addEventListener("click", () => {
      at("search").value = "";
      at("set").value = "all";
      at("answered").value = "any";
      fillSubjects();
      at("subject").value = "";
      refresh();
    });
    at("table").tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const name = button.dataset.sort;
      resort(name, name === state.sort ? !state.descending : true);
      at("table").tHead.querySelector(`[data-sort=${name}]`).focus(); // the row of buttons was made anew
    });
    at("table").tBodies[0].addEventListener("click", (event) => {
      const line = event.target.closest("tr");
      // Whoever selects text to copy it does not mean to open the question.
      if (line && getSelection().isCollapsed) open(Number(line.dataset.place));
    });
    for (const [name, step] of [["back", -1], ["forth", 1]]) {
      at(name).addEventListener("click", () => {
        state.page += step;
        page();
        at("count").scrollIntoView({ block: "nearest" });
      });
    }
    at("previous").addEventListener("click", () => open(state.place - 1));
    at("next").addEventListener("click", () => open(state.place + 1));
    at("close").addEventListener("click", () => at("dialog").close());
    at("dialog").addEventListener("click", (event) => {
      if (event.target === at("dialog")) at("dialog").close(); // beside it
    });
    at("dialog").addEventListener("close", () => {
      // Back to the question that was open last, which may be another than the one that opened the dialog.
      state.page = Math.floor(state.place / PAGE);
      page();
      at("table").querySelector(`button[data-place="${state.place}"]`)?.focus();
    });

    fillSubjects();
    resort(state.sort, true);
  }

  async function start() {
    const message = at("message");
    if (typeof DecompressionStream === "undefined") {
      message.textContent = "The questions cannot be unpacked by this browser; one of 2023 or newer can.";
      return;
    }
    const all = unpack(await inflate(at("data").textContent));
    at("app").hidden = false;
    explore(all);
    message.remove();
    section.setAttribute("aria-busy", "false");
  }

  // First the page itself, then the explorer.
  requestAnimationFrame(() => setTimeout(start));
})();
