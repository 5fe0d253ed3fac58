// What the page can do beyond plain HTML: sort, filter, draw, switch its colours, open what an address names.
const $ = (selector, within = document) => [...within.querySelectorAll(selector)];
const root = document.documentElement;

// Colours
const button = document.getElementById("theme");
const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const recall = () => { try { return localStorage.getItem("vlprompt-theme"); } catch { return null; } };
const remember = (theme) => { try { localStorage.setItem("vlprompt-theme", theme); } catch { /* a browser may refuse */ } };
function showTheme() {
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  $(".plot").filter((plot) => plot.drawn).forEach((plot) => Plotly.relayout(plot, colours()));
}
function colours() {
  const of = (name) => {  // Plotly wants a plain colour, and light-dark() is none
    const probe = document.body.appendChild(document.createElement("span"));
    probe.style.color = `var(${name})`;
    const colour = getComputedStyle(probe).color;
    probe.remove();
    return colour;
  };
  const axes = {};
  for (const axis of ["xaxis", "yaxis"])
    Object.assign(axes, { [`${axis}.gridcolor`]: of("--line"), [`${axis}.zerolinecolor`]: of("--line"), [`${axis}.linecolor`]: of("--muted") });
  return { "font.color": of("--text"), ...axes, "hoverlabel.bgcolor": of("--panel"), "hoverlabel.font.color": of("--text"), "modebar.color": of("--muted"), "modebar.activecolor": of("--text") };
}
if (["dark", "light"].includes(recall())) root.dataset.theme = recall();
button.hidden = false;
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remember(root.dataset.theme);
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);

// Tables
const form = document.getElementById("filters");
const wanted = () => Object.fromEntries($("select", form || undefined).filter((s) => s.dataset.filter && s.value).map((s) => [s.dataset.filter, s.value]));
// What is not trained has no shots of its own, and belongs to every number of them.
const fits = (data, choice) => Object.entries(choice).every(([name, value]) => !(name in data) || data[name] === value || (name === "shots" && data[name] === "0"));
const tables = $("table.sortable").map((element) => {
  const n = element.tBodies[0].rows.length, long = n > 50;
  const region = element.parentElement;
  for (const name of ["tabindex", "role", "aria-label"]) region.removeAttribute(name);
  region.classList.remove("scroll");
  const table = jQuery(element).DataTable({
    order: [], autoWidth: false, paging: long, pageLength: 50, lengthMenu: [25, 50, 100, { label: "all", value: -1 }],
    layout: { topStart: long ? "pageLength" : null, topEnd: n > 8 ? "search" : null, bottomStart: n > 8 ? "info" : null, bottomEnd: long ? "paging" : null },
    language: { search: "Search", lengthMenu: "_MENU_ rows", info: "_START_ to _END_ of _TOTAL_ rows", infoEmpty: "no rows", infoFiltered: "(of _MAX_)", zeroRecords: "no row has this" },
  });
  const scrolled = region.querySelector(".dt-layout-table");
  scrolled.tabIndex = 0;
  scrolled.setAttribute("role", "region");
  scrolled.setAttribute("aria-label", element.caption.textContent);
  return { table, region };
});
function filter() {
  const choice = wanted();
  let n = 0;
  for (const { table, region } of tables) {
    table.search.fixed("choice", (text, data, index) => fits(table.row(index).node().dataset, choice)).draw();
    const rows = table.rows({ search: "applied" }).count();
    region.hidden = Object.keys(choice).length > 0 && rows === 0 && !table.search();
    if (region.closest("#results")) n += rows;
  }
  $("details.group").forEach((group) => { group.hidden = !fits(group.dataset, choice); });
  document.getElementById("shown").textContent = `${n} rows of results`;
}
if (form) {
  form.hidden = false;
  form.addEventListener("change", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  if ($("select", form).some((select) => select.value)) filter();  // what a browser kept from the last visit
}

// Figures
const base = () => ({
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 60, r: 20, t: 20, b: 50 }, height: 440,
  font: { family: getComputedStyle(document.body).fontFamily, size: 13 }, hovermode: "closest", dragmode: "zoom", showlegend: false,
});
const config = {
  displaylogo: false, responsive: true, toImageButtonOptions: { format: "svg" },
  modeBarButtonsToRemove: ["sendChartToCloud"],  // the page sends nothing
};
function fitted(layout, width) {
  if (width >= 600) return layout;
  for (const axis of [layout.xaxis, layout.yaxis].filter((axis) => axis?.ticktext))
    axis.ticktext = axis.ticktext.map((name) => (name.length > 17 ? `${name.slice(0, 16)}…` : name));
  const { ticktext, title } = layout.xaxis;
  layout.xaxis.automargin = true;
  if (title) Object.assign(title, { text: title.text.replace(/;? (?=\()|; /g, "<br>"), standoff: 12 });
  if (ticktext?.length > 12)  // upright names would hide each other
    Object.assign(layout.xaxis, { showticklabels: false, title: { text: `${ticktext.length} learners:<br>a cell says its own` } });
  return layout;
}
function start(figure) {
  const { styles, views, title } = JSON.parse($("script", figure)[0].textContent);
  const [plot] = $(".plot", figure), [select] = $("select.view", figure), [toggles] = $(".toggles", figure);
  const chosen = new Map();  // by name; what nobody switched is as its view has it
  plot.hidden = false;
  $(".controls", figure)[0].hidden = false;
  select.parentElement.hidden = views.length < 2;
  const visible = (trace) => chosen.get(trace.meta) ?? trace.visible !== false;
  const restyle = () => Plotly.restyle(plot, { visible: views[select.value].data.map(visible) });
  function draw() {
    const { data, layout, label } = views[select.value];
    const traces = data.map((trace) => ({ ...trace, visible: visible(trace) }));
    plot.style.minHeight = 0;
    Plotly.react(plot, traces, { ...base(), ...fitted(structuredClone(layout), plot.clientWidth) }, config);
    Plotly.relayout(plot, colours());
    plot.drawn = true;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", `${title}: ${label}. Its numbers are in the table below.`);
    legend([...new Set(data.map((trace) => trace.meta).filter(Boolean))]);
  }
  function legend(names) {
    toggles.replaceChildren(toggles.firstElementChild);
    toggles.hidden = names.length < 2;
    for (const [words, on] of [["all", true], ["none", false]]) {
      const one = document.createElement("button");
      one.type = "button";
      one.textContent = words;
      one.addEventListener("click", () => { names.forEach((name) => chosen.set(name, on)); legend(names); restyle(); });
      toggles.append(one, " ");
    }
    const grey = names.filter((name) => !(name in styles));
    names.filter((name) => name in styles).forEach((name) => toggles.append(toggle(name), " "));
    let others = toggles;
    if (grey.length > 6) {
      others = document.createElement("details");
      others.append(document.createElement("summary"));
      others.firstElementChild.textContent = `${grey.length} more learners, in grey`;
      toggles.append(others);
    }
    grey.forEach((name) => others.append(toggle(name), " "));
  }
  function toggle(name) {
    const label = document.createElement("label"), box = document.createElement("input"), mark = document.createElement("span");
    box.type = "checkbox";
    box.checked = views[select.value].data.some((trace) => trace.meta === name && visible(trace));
    box.addEventListener("change", () => { chosen.set(name, box.checked); restyle(); });
    const [colour, symbol] = styles[name] || ["#8c8c8c", "•"];
    mark.className = "mark";
    mark.dataset.symbol = symbol;
    mark.style.color = colour;
    label.append(box, mark, name);
    return label;
  }
  select.addEventListener("change", draw);
  draw();
}
const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
  seen.unobserve(entry.target);
  start(entry.target);
}), { rootMargin: "600px" });
$(".chart").forEach((figure) => seen.observe(figure));

showTheme();
