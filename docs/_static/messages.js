// Which message of the page "All messages" a pasted error is: names and numbers of the reader's program are in none, and do not count.

// Words of a text, and pairs of neighbours.
function words(text) {
  const found = new Set();
  for (const piece of text.toLowerCase().split(/\{[^{}]*\}|[[\]|]/)) {
    const here = piece.match(/[a-z_]+/g) || [];
    here.forEach((word, i) => found.add(word).add(`${here[i - 1]} ${word}`));
  }
  return found;
}

// Numbers of the messages that share most with a query, best first; a rare word counts more than a common one.
function ranked(messages, query) {
  const sets = messages.map(words);
  const counts = new Map();
  for (const set of sets) for (const w of set) counts.set(w, (counts.get(w) || 0) + 1);
  const weight = (w) => Math.log(1 + messages.length / counts.get(w));
  const asked = [...words(query)].filter((w) => counts.has(w));
  const total = asked.reduce((sum, w) => sum + weight(w), 0);
  const scores = sets.map((set) => asked.reduce((sum, w) => sum + (set.has(w) ? weight(w) : 0), 0) / total);
  const best = Math.max(0, ...scores.filter(Number.isFinite));
  return scores
    .map((score, i) => [score, sets[i].size, i])
    .filter(([score]) => score > 0 && score >= 0.8 * best)
    .sort((a, b) => b[0] - a[0] || a[1] - b[1])
    .map(([, , i]) => i);
}

if (typeof module !== "undefined") {
  module.exports = { ranked };
} else {
  const box = document.getElementById("pasted");
  const found = document.getElementById("found");
  const items = [...document.querySelectorAll("article section section > ul > li")];
  const texts = items.map((item) => item.querySelector("code").textContent); // without the example below it
  box.addEventListener("input", () => {
    const numbers = box.value.trim() ? ranked(texts, box.value).slice(0, 5) : [];
    found.replaceChildren(...numbers.map((i) => items[i].cloneNode(true)));
  });
}
