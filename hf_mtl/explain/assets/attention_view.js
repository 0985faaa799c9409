// What bertviz's drawings need: its parameters, made from data that stand in the page once, and its two libraries.
// Reads `#attention-data`, fills `#measure` and `#pair`, and writes what the pointer is on into `#readout`.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("attention-data").textContent);
  const view = document.getElementById("attention-view");
  const readout = document.getElementById("readout");

  // bertviz asks RequireJS for jQuery and d3. Both are here.
  window.require = { config: () => {} };
  window.requirejs = (names, run) => run(window.jQuery, window.d3);

  // Rows of whole units, 1 / scale each, become numbers; of a task's, one sign at a time and the square root, since most
  // are small: `draw` says how strong a line is, `weigh` what it stands for.
  const draw = (measure, units) => {
    const weight = Math.max(0, measure.sign * units) / data.scale;
    return measure.weights > 0 ? Math.sqrt(weight) : weight;
  };
  const weigh = (measure, drawn) => (measure.weights > 0 ? drawn * drawn : drawn);
  const numbers = (rows, measure) =>
    rows.map((row) => (Array.isArray(row) ? numbers(row, measure) : draw(measure, row)));
  const signed = (rows) => rows.map((row) => (Array.isArray(row) ? signed(row) : row / data.scale));
  const once = (make) => {
    let made;
    return () => (made === undefined ? (made = make()) : made);
  };

  const first = [0, data.second === null ? data.tokens.length : data.second];
  const second = [first[1], data.tokens.length];
  const everything = [0, data.tokens.length];
  const pairs = [{ name: "A and B", left: everything, right: everything }];
  if (data.second !== null) {
    pairs.push({ name: "A to A", left: first, right: first }, { name: "A to B", left: first, right: second });
    pairs.push({ name: "B to A", left: second, right: first }, { name: "B to B", left: second, right: second });
  }

  const attention = {};
  const perLayerAndHead = (layers, change) => layers.map((heads) => heads.map(change));
  data.measures.forEach((measure, m) => {
    const whole = once(() => numbers(data.weights[measure.weights], measure));
    pairs.forEach((pair, p) => {
      const part = once(() => ({
        left_text: data.tokens.slice(...pair.left),
        right_text: data.tokens.slice(...pair.right),
        attn: perLayerAndHead(whole(), (rows) => rows.slice(...pair.left).map((row) => row.slice(...pair.right))),
        queries: data.queries && perLayerAndHead(signed(data.queries), (rows) => rows.slice(...pair.left)),
        keys: data.keys && perLayerAndHead(signed(data.keys), (rows) => rows.slice(...pair.right)),
      }));
      Object.defineProperty(attention, `${m} ${p}`, { get: part, enumerable: true });
    });
  });

  const filter = document.getElementById("filter");
  const choices = [
    { select: document.getElementById("measure"), options: data.measures },
    { select: document.getElementById("pair"), options: pairs },
  ];
  const measureShown = () => data.measures[+choices[0].select.value];
  Object.keys(attention).forEach((name) => filter.add(new Option(name, name)));
  choices.forEach(({ select, options }) => {
    options.forEach((option, place) => select.add(new Option(option.name, place)));
    select.parentNode.hidden = options.length < 2;
    select.addEventListener("change", () => {
      view.classList.toggle("by-task", measureShown().weights > 0);
      window.jQuery(filter).val(choices.map((choice) => choice.select.value).join(" ")).trigger("change");
    });
  });

  window.bertviz_params = {
    attention,
    default_filter: "0 0",
    root_div_id: "attention-view",
    layer: data.kind === "head" ? data.layers[0] : null,
    head: null,
    heads: null,
    include_layers: data.layers,
    include_heads: data.heads,
    total_heads: data.heads.length,
    display_mode: "light",
    bidirectional: data.bidirectional,
  };

  // What the pointer is on.
  const placeIn = (element) => Array.prototype.indexOf.call(element.parentNode.children, element);
  const shown = () => attention[filter.value || "0 0"];
  const sayHead = (head, layer) => `head ${data.heads[head]}` + (layer === undefined ? "" : ` of layer ${data.layers[layer]}`);

  function linesOf(token, place, isLeft) {
    if (data.kind === "head") {
      return view.querySelectorAll(`#attention line[${isLeft ? "left" : "right"}-token-index='${place}']`);
    }
    const group = data.kind === "model" ? ".detail .attn-line-group" : "#collapsed .attn-line-group";
    return view.querySelectorAll(`${group}[source-index='${place}'] line`);
  }

  function sayToken(token, isLeft) {
    const place = placeIn(token);
    const { left_text: left, right_text: right } = shown();
    const others = isLeft ? right : left;
    const measure = measureShown();
    const weights = new Array(others.length).fill(0);
    let heads = 1; // bertviz divides by the number of those that are shown
    linesOf(token, place, isLeft).forEach((line) => {
      const drawn = window.d3.select(line).datum();
      const opacity = +line.getAttribute("stroke-opacity");
      if (opacity > 0) {
        heads = Math.round(drawn / opacity);
        weights[isLeft ? placeIn(line) : placeIn(line.parentNode)] += weigh(measure, drawn);
      }
    });
    weights.forEach((weight, index) => (weights[index] = weight / heads));
    const order = weights.map((weight, index) => index).sort((a, b) => weights[b] - weights[a] || a - b);
    const most = order.slice(0, 5).filter((index) => weights[index] >= 0.0005);
    const list = most.map((index) => `${others[index]} ${weights[index].toFixed(3)}`).join(", ");
    const verb = isLeft ? "attends to" : "is attended to by";
    const suffix = measure.weights > 0 ? ` (${measure.name})` : "";
    return `“${(isLeft ? left : right)[place]}” ${verb}: ${list || "nothing"}${suffix}`;
  }

  function describe(target) {
    const background = target.previousElementSibling && target.parentNode.querySelector(".attn_background");
    if (background) {
      const [layer, head] = background.id.split("_").slice(-2).map(Number);
      return `${sayHead(head, layer)}: click to look closer`;
    }
    const token = target.closest("g");
    if (!token || !token.querySelector(":scope > text")) {
      const isSquare = data.kind === "head" && target.tagName === "rect" && token === view.querySelector("svg > g:last-child");
      return isSquare ? `${sayHead(placeIn(target))}: click to hide or show, double click to show alone` : "";
    }
    const side = token.closest("#left, #right, #leftText, #rightText, g.detail");
    if (!side) {
      return "";
    }
    const isDetail = side.classList.contains("detail");
    const isLeft = isDetail ? side.querySelector("text").style.textAnchor === "end" : side.id.startsWith("left");
    return isLeft || data.kind === "head" ? sayToken(token, isLeft) : "";
  }

  view.addEventListener("mouseover", (event) => {
    readout.textContent = describe(event.target) || readout.dataset.empty;
  });

  window.afterDrawing = () => {
    if (data.kind === "neuron") {
      // It numbers layers and heads by their place, whichever were chosen.
      const name = (id, names) =>
        view.querySelectorAll(`#${id} option`).forEach((option, place) => (option.text = names[place]));
      name("layer", data.layers);
      name("att_head", data.heads);
    }
    // In a notebook the page stands in a frame, which takes the height of what is drawn.
    const frame = window.frameElement;
    if (frame) {
      const fit = () => (frame.style.height = `${Math.min(900, document.documentElement.offsetHeight + 40)}px`);
      fit();
      new ResizeObserver(fit).observe(document.documentElement);
    }
  };
})();
