/** What all JSON documents of the operator's commands have in common. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Json } from "./plugins.ts";

/** Other words for what has one already, and what that is called. */
const WORDS: Record<string, string> = {
  container: "containerId",
  containerID: "containerId",
  interface: "ifName",
  ifname: "ifName",
  interfaceName: "ifName",
  written: "since",
  name: "network",
};

/** Documents whose shape is somebody else's, or whose `version` is the program's. */
const OTHERS = ["add", "version"];

/** One vocabulary for all documents: what an attachment is called, times, durations, and a version at the top. */
export function assertVocabulary(command: string, document: Json): void {
  // A failure is the protocol's own object.
  if (OTHERS.includes(command) || (typeof document.code === "number" && "msg" in document)) return;
  assertEquals(document.version, 1, `${command} has no version`);
  walk(document, command, (key, value, path) => {
    // What plugins wrote, read or are called is theirs.
    if (/\.(results|configuration|plugins|steps|pools|image)\b/.test(path)) return;
    const isOther = key === "name" ? path.endsWith(".networks.name") : key in WORDS;
    assert(!isOther || typeof value !== "string", `${path}: it is called ${WORDS[key]}`);
    if (["since", "time", "until"].includes(key)) assertMatch(value, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/, path);
    if (/^ms$|Ms$/.test(key)) assertEquals(value, Math.round(value * 100) / 100, path);
  });
}

function walk(value: Json, path: string, look: (key: string, value: Json, path: string) => void): void {
  if (typeof value !== "object" || value === null) return;
  for (const [key, one] of Object.entries(value)) {
    const below = Array.isArray(value) ? path : `${path}.${key}`;
    if (!Array.isArray(value)) look(key, one, below);
    walk(one, below, look);
  }
}
