/** Configuration files with positions: what was found in them, and where. */
import { isObject } from "../cni/decode.ts";
import type { JsonObject } from "../cni/types.ts";
import { JsonError, type Node, parseJsonc, positionOf, type Property, valueOf } from "./jsonc.ts";

/** `error`: it will not work, or not as written; `warning`: it works, but hardly as meant; `note`: worth knowing. */
export type Severity = "error" | "warning" | "note";

/** Something found in a configuration. */
export interface Finding {
  readonly file: string;
  /** From 1; 0 when the whole file is meant. */
  readonly line: number;
  readonly column: number;
  readonly severity: Severity;
  /** Short name of the rule, for scripts. */
  readonly rule: string;
  readonly message: string;
  /** What to do. */
  readonly hint?: string;
}

/** Where something is in a file: a property means its key, a node its value. */
export type Place = Node | Property | undefined;

interface Placed {
  readonly finding: Finding;
  readonly offset: number;
}

/** One file that is looked at. */
export class Source {
  private placed: Placed[] = [];
  constructor(readonly file: string, readonly text: string) {}

  /** What was found, in the order of finding. */
  get findings(): readonly Finding[] {
    return this.placed.map(({ finding }) => finding);
  }

  /** Reads the text; undefined when it is not JSON, which is then among the findings. */
  parse(): Node | undefined {
    try {
      const { root, extras } = parseJsonc(this.text);
      for (const { what, at } of extras) {
        this.add("error", "not-plain-json", at, `a ${what} in a file that runtimes read`, {
          hint: what === "comment"
            ? "runtimes read plain JSON: keep comments in a file for --conf, or remove them"
            : "runtimes read plain JSON: remove it",
        });
        // One of a kind says it all.
        break;
      }
      return root;
    } catch (error) {
      if (!(error instanceof JsonError)) throw error;
      this.add("error", "json", error.at, error.message, { hint: error.advice });
      return undefined;
    }
  }

  /** Notes a finding at an offset or a place; without one it is about the whole file. */
  add(
    severity: Severity,
    rule: string,
    place: number | Place,
    message: string,
    { hint = "" }: { hint?: string | undefined } = {},
  ): void {
    const offset = typeof place === "number"
      ? place
      : place === undefined
      ? undefined
      : "at" in place
      ? place.at
      : place.start;
    const { line, column } = offset === undefined ? { line: 0, column: 0 } : positionOf(this.text, offset);
    const finding = { file: this.file, line, column, severity, rule, message, ...(hint !== "" && { hint }) };
    const before = this.placed.findIndex((one) =>
      one.offset === offset && one.finding.severity === severity && severity === "error" && offset !== undefined
    );
    // Two rules that stumble over one value: the one that knows what to do has the word.
    if (before < 0) this.placed.push({ finding, offset: offset ?? -1 });
    else if (hint !== "") this.placed[before] = { finding, offset: offset ?? -1 };
  }

  /** Takes over what was found in a file that belongs to this one. */
  include(other: Source): void {
    this.placed.push(...other.placed.map(({ finding }) => ({ finding, offset: -1 })));
  }

  /** Forgets what was found inside of a node: something that says it all follows. */
  forget({ start, end }: Node): void {
    this.placed = this.placed.filter(({ offset }) => offset < start || offset >= end);
  }

  error(rule: string, place: number | Place, message: string, hint?: string): void {
    this.add("error", rule, place, message, { hint });
  }
  warn(rule: string, place: number | Place, message: string, hint?: string): void {
    this.add("warning", rule, place, message, { hint });
  }
}

/** An object of a file: its keys and values with their places. */
export class Section {
  readonly value: JsonObject;
  constructor(readonly source: Source, readonly node: Node) {
    const value = valueOf(node);
    this.value = isObject(value) ? value : {};
  }
  get properties(): readonly Property[] {
    return this.node.properties ?? [];
  }
  /** A key as it is written; of several the last counts. */
  exactly(name: string): Property | undefined {
    return this.properties.findLast(({ key }) => key === name);
  }
  /** A key in any case, as plugins read them. */
  property(name: string): Property | undefined {
    return this.properties.findLast(({ key }) => key.toLowerCase() === name.toLowerCase());
  }
  /** Value of a key in any case; undefined when it is absent or null. */
  get(name: string): unknown {
    const property = this.property(name);
    return property === undefined ? undefined : valueOf(property.value) ?? undefined;
  }
  text(name: string): string | undefined {
    const value = this.get(name);
    return typeof value === "string" ? value : undefined;
  }
  /** The object below a key. */
  section(name: string): Section | undefined {
    const node = this.property(name)?.value;
    return node?.kind === "object" ? new Section(this.source, node) : undefined;
  }
  /** The elements of a list below a key. */
  items(name: string): readonly Node[] {
    return this.property(name)?.value.items ?? [];
  }
  /** The place of a key, or of the whole object when it has none. */
  at(name: string): Place {
    return this.property(name) ?? this.node;
  }
  /** The place of a key's value. */
  valueAt(name: string): Place {
    return this.property(name)?.value ?? this.node;
  }
  /** An error in a key's value. */
  wrong(rule: string, name: string, message: string, hint?: string): void {
    this.source.error(rule, this.valueAt(name), message, hint);
  }
  /** A warning about a key's value. */
  doubtful(rule: string, name: string, message: string, hint?: string): void {
    this.source.warn(rule, this.valueAt(name), message, hint);
  }
}

/** A value as messages show it. */
export function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}
