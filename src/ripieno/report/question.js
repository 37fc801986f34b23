"use strict";
// One question and what an ensemble made of it: words, bars and a table, for each page that shows one. Whatever comes
// from a data set or from somebody who asks goes into the page as text nodes only, never as markup.
const oneQuestion = (() => {
  const LANES = 50; // pixels at most, in which members' marks lie below one another
  const NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children.filter((child) => child !== null && child !== ""));
    return made;
  }

  const grouped = (number) => number.toLocaleString("en-US");
  const percent = (share, places = 0) => `${(100 * share).toFixed(places)}%`;
  const counted = (number) => NUMBERS[number] ?? grouped(number);
  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  const letter = (K, k) => (K <= 26 ? String.fromCharCode(65 + k) : `${k + 1}`);

  // Who prefers what: each member's likeliest of K choices, and the ensemble's answer.
  function votes(preferred, K, answer) {
    const members = preferred.length;
    if (members === 1) return "One member answered, so there is no second opinion.";
    const count = new Map();
    for (const k of preferred) count.set(k, (count.get(k) ?? 0) + 1);
    const ordered = [...count].sort(([a, x], [b, y]) => y - x || a - b);
    const [mode, most] = ordered[0];
    if (most === members) {
      const who = members === 2 ? "Both" : `All ${counted(members)}`;
      return `${who} members prefer ${letter(K, mode)}.`;
    }
    const prefer = (n) => (n === 1 ? "prefers" : "prefer");
    const rest = ordered.slice(1).map(([k, n]) => `${counted(n)} ${prefer(n)} ${letter(K, k)}`);
    const first = `${capital(counted(most))} of ${counted(members)} members ${prefer(most)} ${letter(K, mode)}`;
    const other =
      (count.get(answer) ?? 0) < most
        ? ` The answer is still ${letter(K, answer)}: its mean probability is the highest, which is what counts.`
        : "";
    return `${first}, ${rest.join(", ")}.${other}`;
  }

  // The entropy and the mutual information (of one member: null) among K choices, in nats; `than`: beside what others.
  function doubt(entropy, apart, K, than = "") {
    const said = [`Its doubt (entropy): ${entropy.toFixed(2)} of at most ${Math.log(K).toFixed(2)} nats${than}.`];
    if (apart !== null && entropy > 0.005) {
      said.push(
        `${percent(apart / entropy)} of that (mutual information, ${apart.toFixed(3)} nats) is members disagreeing; ` +
          "the rest is each member's own doubt.",
      );
    }
    return said;
  }

  // A choice as an item of a list: its letter, text and tags; its probability as a bar, and a mark a member upon it.
  function choice(kind, name, text, tags, probability, members) {
    const height = Math.min(8 * members.length, LANES);
    const lanes = element("div", { class: "lanes", style: `height: ${height}px` });
    members.forEach(([member, p], m) => {
      const title = `member ${member}: ${p.toFixed(3)}`;
      lanes.append(element("i", { style: `left: ${100 * p}%; top: ${(m * height) / members.length}px`, title }));
    });
    const fill = element("div", { class: "fill", style: `width: ${100 * probability}%` });
    return element(
      "li",
      { class: kind },
      element(
        "div",
        { class: "choice" },
        element("strong", {}, name),
        element("span", { class: "text" }, element("bdi", {}, text), element("span", {}, ...tags)),
        element("span", { class: "percent" }, percent(probability, 1)),
      ),
      element("div", { class: "track", "aria-hidden": "true" }, fill, members.length ? lanes : null),
    );
  }

  // Everybody's probabilities, each row [who, its likeliest choice, of each choice its probability].
  function numbers(heads, rows, label) {
    const head = element("tr", {}, ...["Who", ...heads].map((name) => element("th", { scope: "col" }, name)));
    const body = rows.map(([who, first, probabilities]) => {
      const line = element("tr", {}, element("th", { scope: "row" }, who));
      probabilities.forEach((p, k) => {
        line.append(element("td", {}, k === first ? element("strong", {}, p.toFixed(3)) : p.toFixed(3)));
      });
      return line;
    });
    const table = element("table", { class: "members" }, element("thead", {}, head), element("tbody", {}, ...body));
    const about = { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}: scrolls sideways where it is wide` };
    return element("div", about, table);
  }

  // What the bars and marks of choices mean; `whose`: the marks, "" where there are none.
  function key(whose) {
    const made = element("p", { class: "note" }, element("span", { class: "key-fill" }), " the ensemble's probability");
    if (whose) made.append(", ", element("span", { class: "key-dot" }), ` ${whose} own, a line a member`);
    return made;
  }

  return { element, grouped, percent, counted, capital, letter, votes, doubt, choice, numbers, key };
})();
