/** Bars and growth curves (both axes logarithmic) as an SVG file, one panel beside the other. */

/** One line of a panel: points in ascending x. */
export interface Curve {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
}

/** One panel of curves. */
export interface Panel {
  readonly title: string;
  readonly x: string;
  readonly curves: readonly Curve[];
}

/** One panel of pairs of bars from zero: what a group stands for, then the value of each of `names`. */
export interface Bars {
  readonly title: string;
  readonly x: string;
  readonly names: readonly [string, string];
  readonly groups: readonly (readonly [label: string, first: number, second: number])[];
}

const [WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM] = [460, 320, 56, 36, 20, 48];
const COLOURS = ["#1f6feb", "#8cb4ff", "#c2410c", "#f0a070"];

/** Bars as they are; curves in milliseconds over the panels' x. */
export function svg(panels: readonly (Panel | Bars)[]): string {
  const parts = panels.map((panel, index) =>
    `<g transform="translate(${index * WIDTH} 0)">${"groups" in panel ? drawBars(panel) : draw(panel)}</g>`
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${panels.length * WIDTH} ${HEIGHT}" ` +
    `font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>${parts.join("")}</svg>\n`;
}

function drawBars({ title, x, names, groups }: Bars): string {
  const high = Math.max(...groups.flatMap(([, first, second]) => [first, second])) * 1.25;
  const step = (WIDTH - LEFT - RIGHT) / groups.length;
  const width = step * 0.36;
  const colours = [COLOURS[0], COLOURS[2]];
  const parts = groups.map(([label, ...values], at) => {
    const left = LEFT + at * step + (step - 2 * width) / 2;
    const bars = values.map((value, index) => {
      const tall = value / high * (HEIGHT - TOP - BOTTOM);
      const [from, top] = [left + index * width, HEIGHT - BOTTOM - tall];
      return `<rect x="${from.toFixed(1)}" y="${top.toFixed(1)}" width="${(width - 1).toFixed(1)}" ` +
        `height="${tall.toFixed(1)}" fill="${colours[index]}"/>` +
        `<text x="${(from + width / 2).toFixed(1)}" y="${(top - 4).toFixed(1)}" text-anchor="middle" font-size="9">` +
        `${value.toFixed(1)}</text>`;
    });
    return `${bars.join("")}<text x="${(left + width).toFixed(1)}" y="${HEIGHT - BOTTOM + 16}" ` +
      `text-anchor="middle" font-size="9">${label}</text>`;
  });
  return heading(title, x) +
    `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${HEIGHT - BOTTOM}" y2="${HEIGHT - BOTTOM}" stroke="#999"/>` +
    parts.join("") + names.map((name, index) => legend(name, index, colours[index])).join("");
}

function heading(title: string, x: string): string {
  return `<text x="${WIDTH / 2}" y="20" text-anchor="middle" font-size="13">${title}</text>` +
    `<text x="${(WIDTH + LEFT) / 2}" y="${HEIGHT - 10}" text-anchor="middle">${x}</text>`;
}

function legend(name: string, index: number, colour = ""): string {
  const y = TOP + 8 + index * 15;
  return `<rect x="${LEFT + 10}" y="${y - 7}" width="12" height="4" fill="${colour}"/>` +
    `<text x="${LEFT + 28}" y="${y}">${name}</text>`;
}

function draw({ title, x, curves }: Panel): string {
  const all = curves.flatMap(({ points }) => points);
  const xs = all.map(([value]) => value);
  const ys = all.map(([, value]) => value);
  const [lowX, highX] = [Math.min(...xs), Math.max(...xs)];
  const [lowY, highY] = [10 ** Math.floor(Math.log10(Math.min(...ys))), 10 ** Math.ceil(Math.log10(Math.max(...ys)))];
  const scale = (value: number, low: number, high: number) => Math.log(value / low) / Math.log(high / low || 10);
  const px = (value: number) => (LEFT + scale(value, lowX, highX) * (WIDTH - LEFT - RIGHT)).toFixed(1);
  const py = (value: number) => (HEIGHT - BOTTOM - scale(value, lowY, highY) * (HEIGHT - TOP - BOTTOM)).toFixed(1);
  const ticksX = [...new Set(xs)].map((value) =>
    `<text x="${px(value)}" y="${HEIGHT - BOTTOM + 16}" text-anchor="middle">${value.toLocaleString("en")}</text>`
  );
  const ticksY: string[] = [];
  for (let value = lowY; value <= highY; value *= 10) {
    ticksY.push(
      `<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${py(value)}" y2="${py(value)}" stroke="#ddd"/>` +
        `<text x="${LEFT - 6}" y="${py(value)}" dy="4" text-anchor="end">${value} ms</text>`,
    );
  }
  const lines = curves.map(({ name, points }, index) => {
    const colour = COLOURS[index % COLOURS.length];
    const path = points.map(([at, value]) => `${px(at)},${py(value)}`).join(" ");
    const dots = points.map(([at, value]) => `<circle cx="${px(at)}" cy="${py(value)}" r="3" fill="${colour}"/>`);
    return `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>${dots.join("")}` +
      legend(name, index, colour);
  });
  return `${heading(title, x)}${ticksY.join("")}${ticksX.join("")}${lines.join("")}`;
}
