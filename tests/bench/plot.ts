/** Growth curves as an SVG file: both axes logarithmic, one panel beside the other. */

/** One line of a panel: points in ascending x. */
export interface Curve {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
}

/** One panel. */
export interface Panel {
  readonly title: string;
  readonly x: string;
  readonly curves: readonly Curve[];
}

const [WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM] = [460, 320, 56, 36, 20, 48];
const COLOURS = ["#1f6feb", "#8cb4ff", "#c2410c", "#f0a070"];

/** Milliseconds over the panels' x. */
export function svg(panels: readonly Panel[]): string {
  const parts = panels.map((panel, index) => `<g transform="translate(${index * WIDTH} 0)">${draw(panel)}</g>`);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${panels.length * WIDTH} ${HEIGHT}" ` +
    `font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>${parts.join("")}</svg>\n`;
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
    const y = TOP + 8 + index * 15;
    return `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>${dots.join("")}` +
      `<rect x="${LEFT + 10}" y="${y - 7}" width="12" height="4" fill="${colour}"/>` +
      `<text x="${LEFT + 28}" y="${y}">${name}</text>`;
  });
  return `<text x="${WIDTH / 2}" y="20" text-anchor="middle" font-size="13">${title}</text>${ticksY.join("")}` +
    `${ticksX.join("")}${lines.join("")}` +
    `<text x="${(WIDTH + LEFT) / 2}" y="${HEIGHT - 10}" text-anchor="middle">${x}</text>`;
}
