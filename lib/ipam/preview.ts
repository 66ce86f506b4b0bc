/** The leases of a network for a call that is explained: nothing is locked, and changes are told instead of made. */
import type { Effect } from "../kernel/plan.ts";
import { exists } from "../kernel/regular_file.ts";
import { readFileIfThere } from "../kernel/state_file.ts";
import { contentOf, type Holder, type Holding, type OpenStore, Store, type StoreOptions } from "./store.ts";

/** A lease folder as it is, or will be; undefined where there is none and none is made. Another may be quicker. */
export function openPreview(folder: string, options: StoreOptions): OpenStore | undefined {
  options.meanwhile?.();
  if (!options.create && !exists(folder)) return undefined;
  return { store: new Preview(folder, options), close: () => {} };
}

class Preview extends Store {
  readonly #tell: (effect: Effect) => void;
  readonly #taken = new Set<string>();

  constructor(folder: string, options: StoreOptions) {
    super(folder, options);
    this.#tell = (effect) => options.perform?.(effect, () => {});
  }

  override holding(holder: Holder): Holding {
    const leases = exists(this.folder) ? this.leases() : [];
    const having = (content: string) => leases.filter((one) => contentOf(one) === content).map(({ ip }) => ip);
    return { own: having(contentOf(holder)), old: having(holder.containerId) };
  }

  override isFree(ip: string): boolean {
    return !this.#taken.has(ip) && super.isFree(ip);
  }

  override reserve(ip: string, holder: Holder): boolean {
    if (!this.isFree(ip)) return false;
    this.#taken.add(ip);
    const why = "the address is taken, unless it is by now";
    this.#tell({ file: `${this.folder}/${ip}`, text: contentOf(holder), exclusive: true, why });
    return true;
  }

  override release(ip: string): void {
    const file = `${this.folder}/${ip}`;
    this.#tell({ file, held: readFileIfThere(file), why: "the address is released, unless it is another's by now" });
  }

  override discard(ip: string): void {
    this.#tell({ file: `${this.folder}/${ip}`, why: "the file says nothing: a crash left it" });
  }

  override setCursor(index: number, ip: string): void {
    const file = `${this.folder}/last_reserved_ip.${index}`;
    this.#tell({ file, text: ip, why: "the next search begins behind it" });
  }

  override names(): Set<string> {
    return exists(this.folder) ? super.names() : new Set();
  }
}
