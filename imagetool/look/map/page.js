// What is pointed at or tapped says in words what it is; without a script the browser shows its title.
const said = document.querySelector("output");
const say = event => {
  const title = event.target.closest?.("rect, path")?.querySelector("title");
  said.textContent = title ? title.textContent : "";
};
document.addEventListener("pointerover", say);
document.addEventListener("click", say);
