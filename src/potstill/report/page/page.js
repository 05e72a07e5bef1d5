// Searches the questions, and opens the question of an anchor. The page works without it: the search is shown only by it.
(() => {
  const search = document.getElementById("search"), found = document.getElementById("found");
  const questions = [...document.querySelectorAll(".question")].map(e => [e, e.textContent.toLowerCase()]);
  const count = () => {
    const visible = questions.filter(([e]) => getComputedStyle(e).display !== "none").length;
    found.textContent = `${visible} of ${questions.length} questions`;
  };
  search.closest("[hidden]").hidden = false;
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(word => word);
    for (const [e, text] of questions) e.classList.toggle("unfound", !words.every(word => text.includes(word)));
    count();
  });
  for (const choice of document.querySelectorAll(".filter input[type=radio]")) choice.addEventListener("change", count);
  const open = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.matches(".question")) { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  open();
  count();
})();
