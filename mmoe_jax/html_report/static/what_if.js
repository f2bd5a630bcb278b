// What-if of the page: a form for a row's columns, and what the model makes of it.
//
// `mmoeWhatIf.score(row)` in the console scores a row.

/** Starts the what-if in the element `root`; returns its functions. */
function startWhatIf(data, root) {
  const encode = createEncoder(data.encoder), forward = createModel(data.program);

  const outputs = data.tasks.reduce((sum, task) => sum + task.outputs, 0);

  // Scores of one model by name.
  function scoresOf(logits) {
    const scores = {};
    let start = 0;
    for (const task of data.tasks) {
      const z = [...logits.slice(start, start + task.outputs)];
      start += task.outputs;
      if (task.kind === "binary") {
        scores[task.name] = 1 / (1 + Math.exp(-z[0]));
      } else if (task.kind === "regression") {
        scores[task.name] = z[0] * task.std + task.mean;
      } else {
        const most = Math.max(...z), odds = z.map((v) => Math.exp(v - most));
        const total = odds.reduce((a, b) => a + b, 0);
        task.scores.forEach((name, i) => { scores[name] = odds[i] / total; });
      }
    }
    return scores;
  }

  // Of several models: means of their scores, and the ranges of these.
  function score(row) {
    const {logits, gates} = forward(encode(row));
    const each = Array.from({length: data.members}, (_, m) => scoresOf(logits.slice(m * outputs, (m + 1) * outputs)));
    const scores = {}, ranges = {};
    for (const name of Object.keys(each[0])) {
      const values = each.map((found) => found[name]);
      scores[name] = values.reduce((a, b) => a + b, 0) / values.length;
      ranges[name] = [Math.min(...values), Math.max(...values)];
    }
    if (gates === null) return {scores, ranges, gates: null};
    const experts = gates.shape[2];
    return {scores, ranges, gates: data.tasks.map((_, t) => [...gates.data.slice(t * experts, (t + 1) * experts)])};
  }

  // ---- Elements ----------------------------------------------------------------------------------

  const find = (name) => root.querySelector(`[data-part="${name}"]`);

  function create(tag, attributes = {}, ...content) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...content);
    return element;
  }

  const toPercent = (p) => {
    const percent = 100 * p;
    if (percent > 0 && percent < 0.01) return "<0.01%";
    if (percent < 100 && percent > 99.99) return ">99.99%";
    return `${percent.toFixed(percent < 1 || percent > 99 ? 2 : 1)}%`;
  };
  const toNumber = (v) => Number(v.toPrecision(4)).toLocaleString("en-US", {maximumFractionDigits: 6});
  const MINUS = "\u2212";

  function changeText(now, before, isShare) {
    const change = isShare ? 100 * (now - before) : now - before;
    const size = isShare ? Math.abs(change).toFixed(Math.abs(change) < 1 ? 2 : 1) : toNumber(Math.abs(change));
    if (Number(size) === 0) return "as at the start";
    const arrow = change > 0 ? "\u25b2 +" : `\u25bc ${MINUS}`;
    return `${arrow}${size}${isShare ? " points" : ""}`;
  }

  // ---- The form ----------------------------------------------------------------------------------

  let start = null, row = {}, before = null;
  const controls = new Map();

  function createControl(column, id) {
    const change = (value) => {
      row[column.name] = value;
      update();
    };
    if (column.control === "choice") {
      const feature = data.encoder.features.find((f) => f.name === column.feature);
      const select = create("select", {id});
      const values = [...feature.values];
      if (!values.includes("")) values.push(null);
      for (const value of [...values, data.unknown]) {
        const text = value === null || value === "" ? "(missing)" : value;
        select.append(create("option", {value: value === null ? "" : value}, text));
      }
      select.addEventListener("change", () => change(select.value === "" ? null : select.value));
      return [select, (value) => { select.value = value === null || value === undefined ? "" : value; }];
    }
    const kind = {number: "number", time: "datetime-local"}[column.control] || "text";
    const input = create("input", {
      id, type: kind, step: kind === "number" ? "any" : null, min: column.log ? 0 : null,
      autocomplete: "off", placeholder: column.control === "list" ? `values, separated by ${column.separator}` : "missing",
    });
    const read = () => {
      if (kind === "number" && input.validity.badInput) return "not a number";
      if (input.value === "") return null;
      return column.control === "list" ? input.value.split(column.separator) : input.value;
    };
    input.addEventListener("input", () => change(read()));
    const show = (value) => {
      input.value = value === null || value === undefined ? ""
        : Array.isArray(value) ? value.join(column.separator) : value;
    };
    return [input, show];
  }

  function buildForm() {
    const first = find("columns"), rest = find("more-columns");
    data.columns.forEach((column, i) => {
      const id = `what-if-${i}`;
      const [control, show] = createControl(column, id);
      const field = create("div", {class: "field"}, create("label", {for: id}, column.name), control);
      (i < 10 || data.columns.length <= 12 ? first : rest).append(field);
      controls.set(column.name, {field, show});
    });
    if (rest.childElementCount) find("more-count").textContent = rest.childElementCount;
    else find("more").remove();
  }

  function buildExamples() {
    const holder = find("examples");
    data.rows.forEach((example) => {
      const button = create("button", {type: "button", "aria-pressed": "false"}, example.name);
      button.addEventListener("click", () => choose(example));
      holder.append(button);
      example.button = button;
    });
    find("reset").addEventListener("click", () => choose(start));
  }

  function choose(example) {
    start = example;
    row = {...example.values};
    for (const each of data.rows) each.button.setAttribute("aria-pressed", String(each === example));
    for (const [name, {show}] of controls) show(row[name]);
    const labels = data.tasks.map((task, t) => `${task.name}: ${example.labels[t]}`).join(", ");
    find("labels").textContent = example.labels.length ? `Its labels in the data \u2013 ${labels}.` : "";
    before = null;
    update();
  }

  // ---- Results -----------------------------------------------------------------------------------

  const results = [];

  function buildResults() {
    const holder = find("results");
    data.tasks.forEach((task, t) => {
      const section = create("div", {class: `result s${t % 6}`}, create("h4", {}, task.name));
      const lines = task.scores.map((name) => {
        const value = create("output", {class: "value"}), change = create("span", {class: "change"});
        const bar = create("div", {class: "bar", "aria-hidden": "true"}, create("i"), create("b"));
        const label = name === task.name ? [] : [create("span", {class: "class"}, name.slice(task.name.length + 1))];
        section.append(create("div", {class: "line"}, ...label, value, change));
        if (task.kind !== "regression") section.append(bar);
        const range = create("p", {class: "small range"});
        if (data.members > 1) section.append(range);
        return {name, value, change, bar, range};
      });
      const gates = create("div", {class: "gates", role: "img"});
      section.append(gates);
      results.push({task, lines, gates});
      holder.append(section);
    });
  }

  function showGates(holder, task, now, first) {
    const most = Math.max(...now, ...first, 0.05);
    holder.setAttribute("aria-label", `Gate of ${task.name}: ` +
      now.map((weight, e) => `expert ${e} ${toPercent(weight)}`).join(", "));
    holder.replaceChildren(...now.map((weight, e) => {
      const bar = create("i"), mark = create("b");
      bar.style.height = `${100 * weight / most}%`;
      mark.style.bottom = `${100 * first[e] / most}%`;
      return create("span", {title: `expert ${e}: ${toPercent(weight)}, at the start ${toPercent(first[e])}`},
        create("em", {}, bar, mark), String(e));
    }));
  }

  function update() {
    const problem = find("problem");
    for (const [name, {field}] of controls) {
      const same = JSON.stringify(row[name] ?? null) === JSON.stringify(start.values[name] ?? null);
      field.classList.toggle("changed", !same && String(row[name] ?? "") !== String(start.values[name] ?? ""));
    }
    let now;
    try {
      now = score(row);
      before = before || score(start.values);
      problem.hidden = true;
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
      return;
    }
    results.forEach(({task, lines, gates}, t) => {
      const isShare = task.kind !== "regression";
      for (const {name, value, change, bar, range} of lines) {
        const score = now.scores[name], first = before.scores[name];
        const [low, high] = now.ranges[name].map(isShare ? toPercent : toNumber);
        value.textContent = isShare ? toPercent(score) : toNumber(score);
        range.textContent = `Members: ${low} to ${high}`;
        change.textContent = changeText(score, first, isShare);
        bar.children[0].style.width = `${100 * score}%`;
        bar.children[1].style.left = `${100 * first}%`;
      }
      if (now.gates) showGates(gates, task, now.gates[t], before.gates[t]);
    });
  }

  if (root) {
    buildForm();
    buildExamples();
    buildResults();
    if (data.rows.length) choose(data.rows[Math.floor(data.rows.length / 2)]);
  }
  return {score, encode};
}

if (typeof document !== "undefined") {
  const holder = document.getElementById("what-if-data");
  if (holder) {
    const root = document.getElementById("what-if-form");
    root.hidden = false;
    window.mmoeWhatIf = startWhatIf(JSON.parse(holder.textContent), root);
  }
}
