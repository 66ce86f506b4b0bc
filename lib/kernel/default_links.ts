/** Which way out this network namespace has. */
import { answersOf } from "./batch.ts";
import type { RouteEntry } from "./ip.ts";
import { must, type Run } from "./run.ts";

/** Links of a family's default routes, in the kernel's order. Throws when they cannot be listed. */
export async function defaultLinks(run: Run, family: 4 | 6): Promise<string[]> {
  const argv = ["ip", ...(family === 6 ? ["-6"] : []), "-j", "route", "show", "default"];
  const routes = answersOf<RouteEntry>(await must(run, { argv })).flat();
  return routes.flatMap(({ dev, nexthops = [] }) => dev ?? nexthops.flatMap((one) => one.dev ?? []));
}
