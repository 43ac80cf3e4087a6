// Shows a page in a frame of each width, and writes down what is wrong with it.
const NEAR = 1.5; // pixels

async function shown(page, width) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `border:0; width:${width}px; height:900px; display:block`;
  frame.srcdoc = page;
  document.body.append(frame);
  await new Promise((done) => frame.addEventListener("load", done));
  const root = frame.contentDocument;
  for (const each of root.querySelectorAll("details")) each.open = true;
  await root.fonts.ready;
  return frame;
}

function texts(root) {
  const found = [];
  const walker = root.createTreeWalker(root.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("style, script, title, .unseen")) continue;
    const range = root.createRange();
    range.selectNodeContents(walker.currentNode);
    const boxes = element.closest("svg") ? [element.getBoundingClientRect()] : [...range.getClientRects()];
    found.push({ element, text: walker.currentNode.data.trim(), boxes: boxes.filter((box) => box.width) });
  }
  return found;
}

// The nearest element around one for whose style something holds.
function around(element, holds) {
  for (let each = element; each; each = each.parentElement) {
    if (holds(each.ownerDocument.defaultView.getComputedStyle(each), each)) return each;
  }
  return null;
}

// A drawer that is closed stands beside the screen.
function isAway(element, width) {
  const drawer = around(element, (style) => style.position === "fixed");
  const box = drawer?.getBoundingClientRect();
  return box !== undefined && (box.right <= NEAR || box.left >= width - NEAR);
}

function clipped(texts, width) {
  const wrong = [];
  for (const { element, text, boxes } of texts) {
    const picture = element.closest("svg");
    const scroll = around(element, (style) => ["auto", "scroll"].includes(style.overflowX)) || isAway(element, width);
    for (const box of boxes) {
      const room = picture ? picture.getBoundingClientRect() : { left: 0, right: width };
      const outside = !scroll && (box.left < room.left - NEAR || box.right > room.right + NEAR);
      const above = picture && (box.top < room.top - NEAR || box.bottom > room.bottom + NEAR);
      if (outside || above) wrong.push(text);
    }
  }
  return wrong;
}

function overlapping(texts) {
  const wrong = [];
  const pictures = new Map();
  for (const each of texts) {
    const picture = each.element.closest("svg");
    if (picture) pictures.set(picture, [...(pictures.get(picture) ?? []), each]);
  }
  for (const inside of pictures.values()) {
    inside.forEach((one, place) => {
      for (const other of inside.slice(place + 1)) {
        const [a, b] = [one.boxes[0], other.boxes[0]];
        if (!a || !b) continue;
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > NEAR && high > 4) wrong.push(`${one.text} / ${other.text}`);
      }
    });
  }
  return wrong;
}

const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
const brush = canvas.getContext("2d", { willReadFrequently: true });
const known = new Map();

function channels(colour) {
  if (!known.has(colour)) {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = colour;
    brush.fillRect(0, 0, 1, 1);
    known.set(colour, [...brush.getImageData(0, 0, 1, 1).data]);
  }
  return known.get(colour);
}

function luminance([r, g, b]) {
  const linear = [r, g, b].map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

function ground(element) {
  let layers = [];
  for (let each = element; each; each = each.parentElement) {
    const colour = channels(each.ownerDocument.defaultView.getComputedStyle(each).backgroundColor);
    layers.push(colour);
    if (colour[3] === 255) break;
  }
  let found = layers.pop();
  if (found[3] !== 255) found = [255, 255, 255, 255];
  for (const layer of layers.reverse()) {
    const share = layer[3] / 255;
    found = found.map((part, place) => (place < 3 ? share * layer[place] + (1 - share) * part : 255));
  }
  return found;
}

function pale(texts) {
  const wrong = new Set();
  for (const { element, text, boxes } of texts) {
    if (!boxes.length) continue;
    const style = element.ownerDocument.defaultView.getComputedStyle(element);
    const ink = channels(element.closest("svg") ? style.fill : style.color);
    const [one, other] = [luminance(ink), luminance(ground(element))].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < 4.5) wrong.add(`${text} (${contrast.toFixed(1)})`);
  }
  return [...wrong];
}

(async () => {
  const found = [];
  for (const width of given.widths) {
    const frame = await shown(given.page, width);
    const root = frame.contentDocument;
    const seen = texts(root);
    found.push({
      width,
      dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
      wide: root.documentElement.scrollWidth,
      high: root.documentElement.scrollHeight,
      ground: ground(root.body),
      texts: seen.length,
      clipped: clipped(seen, width),
      overlapping: overlapping(seen),
      pale: pale(seen),
    });
    frame.remove();
  }
  const result = Object.assign(document.createElement("pre"), { id: "measured" });
  result.textContent = JSON.stringify(found);
  document.body.append(result);
})();
