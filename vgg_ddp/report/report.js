// The page works without this script; with it, cells of the confusion matrix open, charts tell their values, and there is
// a quiz. Names from the data only ever become text nodes.
"use strict";
(() => {
  const root = document.documentElement;
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, text = "", style = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (style) element.className = style;
    return element;
  };
  const percent = (share, digits = 0) => {
    let text = (100 * share).toFixed(digits);
    while (share > 0 && share < 1 && digits < 6 && (+text === 0 || +text === 100)) text = (100 * share).toFixed(++digits);
    return `${+text === 0 || +text === 100 ? +text : text}\u00a0%`;
  };
  const plural = (count, word) => `${count.toLocaleString("en-GB")} ${word}${count === 1 ? "" : "s"}`;
  root.classList.add("js");

  // Light and dark.

  const theme = find("#theme");
  const themes = ["auto", "light", "dark"];
  const setTheme = (name) => {
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
    theme.textContent = `Theme: ${name}`;
    theme.dataset.name = name;
    dispatchEvent(new Event("recolour"));
  };
  const stored = (use) => {
    try {
      return use(localStorage); // where it is forbidden, for a page from a file say, nothing is remembered
    } catch {
      return null;
    }
  };
  const remembered = stored((store) => store.getItem("vgg_ddp theme"));
  theme.hidden = false;
  setTheme(themes.includes(remembered) ? remembered : "auto");
  theme.addEventListener("click", () => {
    setTheme(themes[(themes.indexOf(theme.dataset.name) + 1) % 3]);
    stored((store) => store.setItem("vgg_ddp theme", theme.dataset.name));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("recolour")));

  // A page of a training that goes on is loaded again, unless somebody reads on.

  const reload = find("#reload");
  if (reload) {
    let timer = 0;
    const again = () => (find("#image")?.open ? wait() : location.reload());
    const wait = () => (timer = setTimeout(again, 1000 * +reload.dataset.seconds));
    reload.addEventListener("click", () => {
      clearTimeout(timer);
      const stopped = reload.getAttribute("aria-pressed") === "false";
      reload.setAttribute("aria-pressed", stopped);
      if (!stopped) wait();
    });
    wait();
  }

  // The section that is being read, in the bar at the top.

  const links = new Map(all("nav a").map((link) => [link.getAttribute("href").slice(1), link]));
  // On the way there, sections get their real height as they are passed. Where nothing scrolls, or the reader turns to
  // something else, there is no arrival: it would undo the reader's own next scroll.
  let way = new AbortController();
  for (const [id, link] of links)
    link.addEventListener("click", (event) => {
      way.abort();
      if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return; // opens elsewhere
      const here = (way = new AbortController());
      const leave = () => here.abort();
      const arrive = () => {
        leave();
        find(`#${id}`).scrollIntoView({ behavior: "instant" });
      };
      addEventListener("scrollend", arrive, { signal: here.signal });
      for (const sign of ["wheel", "touchstart", "keydown"])
        addEventListener(sign, leave, { signal: here.signal, passive: true });
      const still = setTimeout(leave, 1500); // a long way takes longer than this, but begins at once
      addEventListener("scroll", () => clearTimeout(still), { signal: here.signal, passive: true });
    });
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const link = links.get(entry.target.getAttribute("aria-labelledby"));
        if (!link || !entry.isIntersecting) continue;
        links.forEach((other) => other.removeAttribute("aria-current"));
        link.setAttribute("aria-current", "true");
        link.parentElement.scrollLeft = link.offsetLeft - link.parentElement.offsetLeft - 60;
      }
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  all("main > section").forEach((section) => watcher.observe(section));

  // Charts: the values under the pointer, or where the arrow keys went.

  const svgElement = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const nearest = (values, wanted) => {
    let best = 0;
    values.forEach((value, k) => {
      if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = k;
    });
    return best;
  };
  for (const svg of all("svg[data-chart]")) {
    const chart = JSON.parse(svg.dataset.chart);
    const [left, right, top, bottom, end, low, high] = chart.frame;
    const output = find("output", svg.closest("figure"));
    const cursor = svgElement("g", { visibility: "hidden" });
    svg.append(cursor);
    let at = null;
    const tell = (wanted) => {
      at = Math.min(Math.max(wanted, 0), end);
      cursor.replaceChildren();
      const told = [];
      const reached = chart.lines.map((line) => line.x[nearest(line.x, at)]);
      const shown = reached[nearest(reached, at)];
      const named = (x) => (chart.x_exponent === null ? +x.toFixed(2) : +(10 ** (x + chart.x_exponent)).toPrecision(2));
      chart.lines.forEach((line) => {
        const nearby = nearest(line.x, shown);
        const value = line.y[nearby];
        if (value === null) return;
        const x = left + ((right - left) * line.x[nearby]) / end;
        const height = chart.logarithmic ? Math.log10(value) : value;
        const y = bottom - ((bottom - top) * (height - low)) / (high - low);
        cursor.append(svgElement("circle", { class: `dot ${line.style}`, cx: x, cy: y, r: 4 }));
        const text = chart.shares ? percent(value, 1) : value.toLocaleString("en-GB", { maximumSignificantDigits: 4 });
        const elsewhere = named(line.x[nearby]) === named(shown) ? "" : ` (${chart.x} ${named(line.x[nearby])})`;
        told.push((chart.lines.length > 1 ? `${line.name} ${text}` : text) + elsewhere);
      });
      const x = left + ((right - left) * shown) / end;
      cursor.prepend(svgElement("path", { class: "cursor", d: `M${x} ${top}V${bottom}` }));
      cursor.setAttribute("visibility", "visible");
      output.textContent = `${chart.x} ${named(shown)}: ${told.join(", ")}`;
    };
    svg.addEventListener("tell", (event) => tell(event.detail));
    const clear = () => {
      cursor.setAttribute("visibility", "hidden");
      output.textContent = "";
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      tell((((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width - left) * (end / (right - left)));
    });
    svg.addEventListener("pointerleave", clear);
    svg.addEventListener("focus", () => svg.matches(":focus-visible") && tell(at ?? end));
    svg.addEventListener("blur", clear);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      tell((at ?? end) + (step * end) / 50);
    });
  }

  // What is drawn when it comes near, and before it is printed.

  const whenNear = (element, begin) => {
    const once = () => {
      near.disconnect();
      removeEventListener("beforeprint", once);
      begin();
    };
    const near = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && once(), {
      rootMargin: "600px",
    });
    near.observe(element);
    addEventListener("beforeprint", once);
  };
  const folded = all("details");
  addEventListener("beforeprint", () => {
    for (const details of folded) [details.dataset.open, details.open] = [details.open, true];
  });
  addEventListener("afterprint", () => {
    for (const details of folded) details.open = details.dataset.open === "true";
  });

  // Pictures open large, with the one before and the one after. A list of them is one stop of the Tab key; the arrow keys
  // move in it.

  const dialog = find("#image");
  let [row, at] = [[], 0]; // functions that describe a picture, and which is shown
  const turn = (by) => {
    at = (at + by + row.length) % row.length;
    const { picture, title, words, answers, near = "" } = row[at]();
    find("#image-picture").replaceChildren(...(picture ? [picture] : []));
    find("#image-title").textContent = title;
    find("#image-words").textContent = words;
    find("#image-answers").replaceChildren(...answers);
    find("#image-near").textContent = near;
    find("#image-near").hidden = !near;
    find("#image-count").textContent = row.length > 1 ? `${at + 1} of ${row.length.toLocaleString("en-GB")}` : "";
  };
  const open = (pictures, first) => {
    [row, at] = [pictures, first];
    for (const button of all(".turn button", dialog)) button.hidden = row.length < 2;
    turn(0);
    dialog.showModal();
  };
  find("#image-before").addEventListener("click", () => turn(-1));
  find("#image-after").addEventListener("click", () => turn(1));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    turn(by);
  });
  const oneStop = (list) =>
    list.addEventListener("keydown", (event) => {
      const buttons = all("button", list);
      const k = buttons.indexOf(document.activeElement);
      const next = buttons[{ ArrowLeft: k - 1, ArrowRight: k + 1, Home: 0, End: buttons.length - 1 }[event.key]];
      if (k < 0 || !next) return;
      event.preventDefault();
      buttons[k].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  let known = () => ({}); // what the page's data say of a picture, by its index
  for (const list of all("ul.tiles")) {
    oneStop(list);
    const images = all("img:not(.seen)", list);
    const pictures = images.map((image) => {
      const [tile, alt] = [image.closest("li"), image.alt];
      const told = all("p", tile).map((line) => line.textContent.trim());
      const plain = { title: told[0], words: [...told.slice(1), alt].join(". "), answers: [] };
      return () => {
        const large = image.cloneNode();
        large.alt = alt;
        return { ...plain, ...known(tile.dataset.image), picture: large };
      };
    });
    images.forEach((image, k) => {
      const button = make("button");
      button.type = "button";
      button.tabIndex = k ? -1 : 0;
      button.setAttribute("aria-label", `${image.alt}; enlarge`);
      button.addEventListener("click", () => open(pictures, k));
      image.replaceWith(button);
      image.alt = "";
      button.append(image);
    });
  }

  // What it gets right where it may leave out what it is not sure of.

  const sureness = find("#sureness");
  if (sureness) {
    const points = JSON.parse(sureness.dataset.points);
    const chart = find("svg[data-chart]", sureness.closest("section"));
    const show = () => {
      const [sure, answered, right] = points[+sureness.value];
      find("#sureness-value").textContent =
        `at least ${percent(sure, 1)} sure: it answers ${percent(answered, 1)} and is right in ${percent(right, 1)} of its answers`;
      sureness.setAttribute("aria-valuetext", find("#sureness-value").textContent);
      chart.dispatchEvent(new CustomEvent("tell", { detail: answered }));
    };
    find(".slider").hidden = false;
    sureness.addEventListener("input", show);
    show();
  }

  // Single images.

  const source = find("#page-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const unpack = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Uint16Array(bytes.buffer);
  };
  const top = unpack(data.top);
  const probability = unpack(data.probability);
  const answerOf = (k) => top[k * data.tops];
  const confidenceOf = (k) => probability[k * data.tops] / 65535;
  // The last steps to 0 and 1, which the page rounds all but these to.
  const sure = (k, place, digits) => {
    const value = probability[k * data.tops + place];
    return value === 1 ? "<0.01\u00a0%" : value === 65534 ? ">99.99\u00a0%" : percent(value / 65535, digits);
  };
  const sheetSources = all("script.sheet");
  const pictured = sheetSources.length > 0;
  const perSheet = data.sheet * data.sheet;
  const sheets = [];
  const sheetOf = (k) => {
    const number = Math.floor(k / perSheet);
    sheets[number] ??= (async () => {
      const image = new Image();
      image.src = `data:image/jpeg;base64,${sheetSources[number].textContent}`;
      await image.decode();
      return image;
    })();
    return sheets[number];
  };
  const draw = async (context, k, x, y, side) => {
    const image = await sheetOf(k);
    const place = k % perSheet;
    const [column, row] = [place % data.sheet, Math.floor(place / data.sheet)];
    context.imageSmoothingEnabled = side > data.side || data.side > 64;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, column * data.side, row * data.side, data.side, data.side, x, y, side, side);
  };
  // No sharper than the network saw it.
  const drawAsSeen = async (canvas, k) => {
    const context = canvas.getContext("2d");
    if (!data.seen || data.seen >= data.side) return draw(context, k, 0, 0, canvas.width);
    const small = document.createElement("canvas");
    small.width = small.height = data.seen;
    await draw(small.getContext("2d"), k, 0, 0, data.seen);
    context.imageSmoothingEnabled = data.seen > 64;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  };
  const called = (k) => (data.names[k] ? data.names[k] : `image ${data.index[k]}`);
  const spoken = (k) =>
    `${data.split} image ${data.index[k]} of ${data.dataset}: ${data.classes[data.label[k]]}, taken for ` +
    `${data.classes[answerOf(k)]} with ${sure(k, 0)}`;

  // The labels of the nearest training images, each once, the most frequent first.
  const likeness = (labels) => {
    const often = [...new Set(labels)].map((label) => [label, labels.filter((one) => one === label).length]);
    const told = often.sort((a, b) => b[1] - a[1]).map(([label, count]) => `${data.classes[label]} (${count})`);
    return told.length ? `Its ${labels.length} nearest training images are labelled ${told.join(", ")}.` : "";
  };
  const about = (k) => {
    const right = data.label[k] === answerOf(k);
    const answers = [];
    for (let place = 0; place < data.tops; place++) {
      const share = probability[k * data.tops + place] / 65535;
      const name = top[k * data.tops + place];
      const [row, bar] = [make("li"), make("i")];
      bar.style.setProperty("--w", `${100 * share}%`);
      bar.style.setProperty("--c", name === data.label[k] ? "var(--blue)" : "var(--orange)");
      row.append(make("span", data.classes[name]), make("b", sure(k, place, 1)), bar);
      answers.push(row);
    }
    return {
      title: `${right ? "✓" : "✗"} ${data.classes[data.label[k]]}`,
      words: `${data.split} image ${data.index[k]} of ${data.dataset}, ${called(k)}. The network's answers:`,
      answers,
      near: likeness(data.near[data.index[k]] ?? []),
    };
  };
  const drawn = (k) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 256;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", spoken(k));
    draw(canvas.getContext("2d"), k, 0, 0, 256);
    return canvas;
  };
  const rowOf = (images) => images.map((k) => () => ({ ...about(k), picture: pictured ? drawn(k) : null }));
  const places = new Map(data.index.map((index, k) => [index, k]));
  known = (index) => (places.has(+index) ? about(places.get(+index)) : {});

  const tile = (k, show) => {
    const [item, button] = [make("li"), make("button")];
    button.type = "button";
    button.dataset.image = data.index[k];
    button.setAttribute("aria-label", `${spoken(k)}; enlarge`);
    if (pictured) {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = data.side;
      if (data.side <= 64) canvas.className = "pixelated";
      draw(canvas.getContext("2d"), k, 0, 0, data.side);
      button.append(canvas);
    }
    button.append(make("b", sure(k, 0)));
    if (!pictured) button.append(` ${called(k)}`);
    button.title = called(k);
    button.tabIndex = -1;
    button.addEventListener("click", show);
    item.append(button);
    return item;
  };

  // The wall at the top.

  if (pictured && data.wall.length) {
    const wall = find("#wall");
    const canvas = find("canvas", wall);
    const columns = 20;
    const count = data.wall.length;
    const rows = Math.ceil(count / columns);
    const side = 40;
    const gap = 3;
    canvas.width = columns * (side + gap) - gap;
    canvas.height = rows * (side + gap) - gap;
    wall.hidden = false;
    const chosen = data.wall.map((_, n) => data.wall[(n * 7919) % count]);
    const paint = async () => {
      const context = canvas.getContext("2d");
      const orange = getComputedStyle(root).getPropertyValue("--orange");
      let wrong = 0;
      for (const [n, k] of chosen.entries()) {
        const [x, y] = [(n % columns) * (side + gap), Math.floor(n / columns) * (side + gap)];
        await draw(context, k, x, y, side);
        if (data.label[k] === answerOf(k)) continue;
        wrong++;
        context.strokeStyle = orange;
        context.lineWidth = 4;
        context.strokeRect(x + 2, y + 2, side - 4, side - 4);
      }
      find("figcaption", wall).textContent =
        `${plural(count, "image")} of ${data.dataset}, evenly chosen; the ${wrong} in an orange frame it gets wrong`;
    };
    paint();
    addEventListener("recolour", paint);
    const show = (n) => open(rowOf(chosen), Math.min(n, count - 1));
    canvas.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      const [column, line] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      show(Math.floor(line * rows) * columns + Math.floor(column * columns));
    });
    canvas.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      show(0);
    });
  }

  // The confusion matrix and the images of a cell.

  const counts = new Map();
  for (let n = 0; n < data.confusion.length; n += 3)
    counts.set(data.confusion[n] * data.classes.length + data.confusion[n + 1], data.confusion[n + 2]);
  const countOf = (i, j) => counts.get(i * data.classes.length + j) ?? 0;
  const totalOf = (i) => data.classes.reduce((sum, _, j) => sum + countOf(i, j), 0);
  const [chooseTrue, chooseAnswer] = [find("#cell-true"), find("#cell-answer")];
  for (const select of [chooseTrue, chooseAnswer])
    data.classes.forEach((name, k) => select.append(new Option(name.length > 60 ? `${name.slice(0, 60)}…` : name, k)));
  const cells = all("#matrix td");
  const AT_ONCE = 240;
  let chosenCell = null;
  const showCell = (i, j, move = true) => {
    chosenCell = [i, j];
    chooseTrue.value = i;
    chooseAnswer.value = j;
    for (const cell of cells) {
      const chosen = +cell.dataset.true === i && +cell.dataset.answer === j;
      find("button", cell).setAttribute("aria-pressed", chosen);
    }
    const images = [];
    data.label.forEach((label, k) => label === i && answerOf(k) === j && images.push(k));
    images.sort((a, b) => confidenceOf(b) - confidenceOf(a) || a - b);
    const count = countOf(i, j);
    const names = [data.classes[i], data.classes[j]];
    find("#cell-title").textContent = i === j ? `${names[0]}, named correctly` : `${names[0]} taken for ${names[1]}`;
    const share = totalOf(i) ? `, ${percent(count / totalOf(i), 1)} of ${names[0]}` : "";
    const less = images.length < count ? ` This page carries ${images.length} of them.` : "";
    find("#cell-words").textContent = count
      ? `${plural(count, "image")}${share}; the surest first, each with the network's confidence.${less}`
      : "No image.";
    const list = find("#cell-images");
    list.replaceChildren();
    const more = find("#cell-more");
    const add = () => {
      const shown = list.children.length;
      const next = images.slice(shown, shown + AT_ONCE);
      list.append(...next.map((k, place) => tile(k, () => open(rowOf(images), shown + place))));
      if (!shown && images.length) find("button", list).tabIndex = 0;
      const left = images.length - list.children.length;
      more.hidden = left === 0;
      more.textContent = `Show ${Math.min(left, AT_ONCE)} more of ${left}`;
    };
    more.onclick = add;
    add();
    if (move && matchMedia("(max-width: 60rem)").matches) find("#cell").scrollIntoView({ block: "nearest" });
  };
  for (const select of [chooseTrue, chooseAnswer])
    select.addEventListener("change", () => showCell(+chooseTrue.value, +chooseAnswer.value, false));

  // Cells are one stop of the Tab key; the arrow keys move between them.
  const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const button = (element, i, j) => {
    const inside = make("button", element.textContent);
    inside.type = "button";
    inside.addEventListener("click", () => showCell(i, j));
    element.replaceChildren(inside);
    return inside;
  };
  for (const cell of cells) {
    const [i, j] = [+cell.dataset.true, +cell.dataset.answer];
    const inside = button(cell, i, j);
    inside.tabIndex = i === 0 && j === 0 ? 0 : -1;
    inside.setAttribute("aria-label", `${cell.title}; show these images`);
    inside.addEventListener("keydown", (event) => {
      const [down, across] = arrows[event.key] ?? [0, 0];
      const next = find(`#matrix td[data-true="${i + down}"][data-answer="${j + across}"] button`);
      if (next === inside || !next) return;
      event.preventDefault();
      inside.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
  for (const row of all("#frequent tr[data-true]")) button(find("th", row), +row.dataset.true, +row.dataset.answer);

  const picture = find("#matrix-picture");
  if (picture) {
    const classes = data.classes.length;
    const totals = data.classes.map((_, i) => totalOf(i));
    let worst = 0.05;
    for (const [cell, count] of counts) {
      const [i, j] = [Math.floor(cell / classes), cell % classes];
      if (i !== j) worst = Math.max(worst, count / totals[i]);
    }
    picture.width = picture.height = Math.min(Math.max(600, classes * 6), 2000);
    const side = picture.width / classes;
    let [i, j] = [0, 0];
    const paint = () => {
      const style = getComputedStyle(root);
      const context = picture.getContext("2d");
      context.clearRect(0, 0, picture.width, picture.height);
      for (const [cell, count] of counts) {
        const [row, column] = [Math.floor(cell / classes), cell % classes];
        context.globalAlpha = Math.min(1, Math.max(0.12, count / totals[row] / (row === column ? 1 : worst)));
        context.fillStyle = style.getPropertyValue(row === column ? "--blue" : "--orange");
        context.fillRect(column * side, row * side, Math.ceil(side), Math.ceil(side));
      }
      context.globalAlpha = 1;
      context.strokeStyle = style.getPropertyValue("--ink");
      context.lineWidth = 3;
      context.strokeRect(j * side - 1, i * side - 1, side + 2, side + 2);
    };
    const move = (row, column) => {
      i = Math.min(Math.max(row, 0), classes - 1);
      j = Math.min(Math.max(column, 0), classes - 1);
      find("#matrix-value").textContent = `${data.classes[i]} taken for ${data.classes[j]}: ${countOf(i, j)}`;
      paint();
    };
    const under = (event) => {
      const box = picture.getBoundingClientRect();
      return [event.clientY - box.top, event.clientX - box.left].map((pixels) => Math.floor((pixels / box.width) * classes));
    };
    picture.addEventListener("pointermove", (event) => move(...under(event)));
    picture.addEventListener("click", (event) => {
      move(...under(event));
      showCell(i, j);
    });
    picture.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        showCell(i, j);
      }
      const [down, across] = arrows[event.key] ?? [0, 0];
      if (!down && !across) return;
      event.preventDefault();
      move(i + down, j + across);
    });
    whenNear(picture, () => {
      addEventListener("recolour", paint);
      paint();
    });
  }
  let [startTrue, startAnswer, most] = [0, 0, -1];
  for (const [cell, count] of counts) {
    const [i, j] = [Math.floor(cell / data.classes.length), cell % data.classes.length];
    if (i !== j && count > most) [startTrue, startAnswer, most] = [i, j, count];
  }
  whenNear(find("#cell"), () => chosenCell ?? showCell(startTrue, startAnswer, false));

  // The map of the images.

  const mapSource = find("#map-data");
  if (mapSource) {
    const points = JSON.parse(mapSource.textContent);
    const canvas = find("#map-canvas");
    const chooser = find("#map-shown");
    const present = data.classes.map((_, k) => k).filter((k) => points.label.includes(k));
    chooser.append(new Option("mistakes", "mistakes"), ...present.map((k) => new Option(data.classes[k], k)));
    const MARGIN = 40;
    const MOST_ZOOM = 40;
    let [zoom, left, top] = [1, 0, 0]; // the part in view begins at (left, top) and is 1 / zoom wide, of 1
    let scheduled = false;
    const place = (k) => [
      MARGIN + (points.x[k] - left) * zoom * (canvas.width - 2 * MARGIN),
      MARGIN + (points.y[k] - top) * zoom * (canvas.height - 2 * MARGIN),
    ];
    const side = () => Math.min(96, 16 * Math.sqrt(zoom) + 4 * (zoom - 1));
    const wrong = (k) => points.label[k] !== points.answer[k];
    const isShown = (k) =>
      chooser.value === "" || (chooser.value === "mistakes" ? wrong(k) : points.label[k] === +chooser.value);
    const inView = () =>
      points.index.map((_, k) => k).filter((k) => {
        const [x, y] = place(k);
        return isShown(k) && x >= 0 && x <= canvas.width && y >= 0 && y <= canvas.height;
      });
    const paint = async () => {
      scheduled = false;
      const context = canvas.getContext("2d");
      const style = getComputedStyle(root);
      const [orange, grey] = ["--orange", "--grey"].map((name) => style.getPropertyValue(name));
      const half = side() / 2;
      const visible = inView();
      // Sheets are decoded first, so that a later painting does not get between the pictures of an earlier one.
      await Promise.all(visible.filter((k) => pictured && places.has(points.index[k])).map((k) => sheetOf(places.get(points.index[k]))));
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.fillStyle = grey;
      points.index.forEach((_, k) => {
        const [x, y] = place(k);
        if (!isShown(k)) context.fillRect(x - 1, y - 1, 2, 2);
      });
      for (const k of visible) {
        const [x, y] = place(k);
        const there = places.get(points.index[k]);
        if (pictured && there !== undefined) draw(context, there, x - half, y - half, 2 * half);
        else context.fillRect(x - 3, y - 3, 6, 6);
      }
      // `draw` goes on after the sheet it waits for, which is there: frames come after all pictures.
      await Promise.resolve();
      await Promise.resolve();
      context.strokeStyle = orange;
      context.lineWidth = Math.max(1.5, half / 8);
      for (const k of visible) {
        const [x, y] = place(k);
        if (wrong(k)) context.strokeRect(x - half, y - half, 2 * half, 2 * half);
      }
      find("#map-value").textContent = `${plural(visible.length, "image")} in view, ${visible.filter(wrong).length} of them named wrongly`;
    };
    const repaint = () => {
      if (scheduled) return;
      scheduled = true;
      requestAnimationFrame(paint);
    };
    const clamp = (value) => Math.min(Math.max(value, 0), 1 - 1 / zoom);
    const move = (x, y) => {
      [left, top] = [clamp(x), clamp(y)];
      repaint();
    };
    // Zoom so that what lies at (x, y), shares of the canvas, stays there.
    const zoomAt = (factor, x = 0.5, y = 0.5) => {
      const [atX, atY] = [left + x / zoom, top + y / zoom];
      zoom = Math.min(Math.max(zoom * factor, 1), MOST_ZOOM);
      move(atX - x / zoom, atY - y / zoom);
    };
    const shares = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    const openAt = (x, y) => {
      const distance = (k) => Math.hypot(place(k)[0] - x * canvas.width, place(k)[1] - y * canvas.height);
      const near = inView().filter((k) => places.has(points.index[k])).sort((a, b) => distance(a) - distance(b));
      if (near.length) open(rowOf(near.map((k) => places.get(points.index[k]))), 0);
    };
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls over it until it is chosen
      event.preventDefault();
      zoomAt(Math.exp(-event.deltaY / 300), ...shares(event));
    }, { passive: false });
    const pointers = new Map();
    let moved = 0;
    canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, shares(event));
      canvas.setPointerCapture(event.pointerId);
      moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const [x, y] = shares(event);
      moved += Math.hypot(x - before[0], y - before[1]);
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      pointers.set(event.pointerId, [x, y]);
      if (other) {
        const [was, is] = [before, [x, y]].map((one) => Math.hypot(one[0] - other[0], one[1] - other[1]));
        zoomAt(is / Math.max(was, 0.001), ...other);
      } else move(left - (x - before[0]) / zoom, top - (y - before[1]) / zoom);
    });
    for (const name of ["pointerup", "pointercancel"])
      canvas.addEventListener(name, (event) => {
        if (name === "pointerup" && moved < 0.01 && pointers.size === 1 && event.button === 0) openAt(...shares(event));
        pointers.delete(event.pointerId);
      });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own
      if (event.key === "Escape") canvas.blur(); // a finger scrolls the page again
      const step = 0.15 / zoom;
      const act = {
        "+": () => zoomAt(1.5), "=": () => zoomAt(1.5), "-": () => zoomAt(1 / 1.5), 0: () => zoomAt(0),
        ArrowLeft: () => move(left - step, top), ArrowRight: () => move(left + step, top),
        ArrowUp: () => move(left, top - step), ArrowDown: () => move(left, top + step), Enter: () => openAt(0.5, 0.5),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
    find("#map-in").addEventListener("click", () => zoomAt(1.5));
    find("#map-out").addEventListener("click", () => zoomAt(1 / 1.5));
    find("#map-whole").addEventListener("click", () => zoomAt(0));
    chooser.addEventListener("change", repaint);
    whenNear(canvas, () => {
      addEventListener("recolour", repaint);
      repaint();
    });
  }

  // The quiz.

  if (data.quiz.length) {
    const ROUND = 10;
    const [box, stage, answers] = [find("#quiz-box"), find("#quiz-stage"), find("#quiz-answers")];
    const buttons = [find("#quiz-first"), find("#quiz-second")];
    const [told, next, start, chooser] = ["told", "next", "start", "pair"].map((name) => find(`#quiz-${name}`));
    const short = (name) => (name.length > 40 ? `${name.slice(0, 40)}…` : name);
    data.quiz.forEach((pair, k) =>
      chooser.append(new Option(`${short(data.classes[pair.first])} or ${short(data.classes[pair.second])}?`, k)),
    );
    let [pair, round, asked, you, network] = [null, [], 0, 0, 0];
    const count = () => {
      Object.assign(box.dataset, { you, network, asked });
      for (const [name, score] of [["you", you], ["network", network]]) {
        find(`#quiz-${name}`).textContent = score;
        find(`#quiz-${name}`).previousElementSibling.style.setProperty("--w", `${(100 * score) / Math.max(round.length, 1)}%`);
      }
    };
    const ask = () => {
      const k = pair.images[round[asked]];
      const canvas = find("#quiz-picture");
      drawAsSeen(canvas, k);
      canvas.setAttribute("aria-label", `${data.split} image ${data.index[k]} of ${data.dataset}`);
      canvas.dataset.image = data.index[k];
      find("#quiz-count").textContent = `Picture ${asked + 1} of ${round.length}, from ${data.dataset}`;
      buttons.forEach((button, n) => {
        button.textContent = data.classes[n ? pair.second : pair.first];
        button.disabled = false;
        delete button.dataset.was;
      });
      told.textContent = "";
      next.hidden = true;
      buttons[0].focus({ preventScroll: true });
    };
    const answer = (n) => {
      const place = round[asked];
      const truth = data.label[pair.images[place]];
      const share = pair.share[place];
      const said = share >= 0.5 ? pair.first : pair.second;
      const mine = n ? pair.second : pair.first;
      you += mine === truth;
      network += said === truth;
      asked++;
      buttons.forEach((button, m) => {
        button.disabled = true;
        if ((m ? pair.second : pair.first) === truth) button.dataset.was = "right";
        else if (m === n) button.dataset.was = "wrong";
      });
      const sure = percent(Math.max(share, 1 - share));
      told.textContent =
        `${mine === truth ? "✓ Right" : "✗ No"}: the label says ${data.classes[truth]}. ` +
        `The network says ${data.classes[said]}, ${sure} sure${said === truth ? "." : ", and is wrong."}`;
      count();
      next.hidden = false;
      next.textContent = asked < round.length ? "Next" : "Show the result";
      next.focus({ preventScroll: true });
    };
    const finish = () => {
      const verdict = you > network ? "You know better." : you < network ? "The network knows better." : "A draw.";
      told.textContent =
        `${verdict} You ${you} of ${round.length}, the network ${network}. Of all ${pair.of.toLocaleString("en-GB")} such ` +
        `images the network gets ${percent(pair.accuracy, 1)} right when asked like this.`;
      buttons.forEach((button) => (button.disabled = true));
      next.hidden = true;
      start.textContent = "Once more";
      start.focus({ preventScroll: true });
    };
    start.addEventListener("click", () => {
      pair = data.quiz[+chooser.value];
      const order = pair.images.map((_, k) => [Math.random(), k]).sort((a, b) => a[0] - b[0]);
      round = order.slice(0, ROUND).map(([, k]) => k);
      [asked, you, network] = [0, 0, 0];
      stage.hidden = false;
      answers.hidden = false;
      count();
      ask();
    });
    buttons.forEach((button, n) => button.addEventListener("click", () => answer(n)));
    next.addEventListener("click", () => (asked < round.length ? ask() : finish()));
    answers.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") buttons[0].focus();
      if (event.key === "ArrowRight") buttons[1].focus();
    });
    find("#quiz-box form").addEventListener("submit", (event) => event.preventDefault());
  }
  find("#cell form").addEventListener("submit", (event) => event.preventDefault());
})();
