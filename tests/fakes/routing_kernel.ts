/**
 * A kernel's links, routes, neighbours and forwarding entries in memory, spoken to as `ip` and `bridge` are: the part
 * that nodes need.
 */
import type { Command, Output, Run } from "../../lib/kernel/run.ts";

type Row = Record<string, unknown>;

/** What `ip -j` and `bridge -j` would show, and a `Run` that changes it. */
export class RoutingKernel {
  links: Row[] = [];
  routes: (Row & { family: 4 | 6 })[] = [];
  neighbours: Row[] = [];
  fdb: Row[] = [];
  /** Every changing line, in order. */
  readonly lines: string[] = [];
  /** Called before each changing line; may throw, as a kill does, or return the kernel's refusal. */
  interfere: (line: string) => string | void = () => {};

  /** A link with addresses in CIDR form. */
  link(ifname: string, addresses: readonly string[], more: Row = {}): Row {
    const row = {
      ifindex: this.links.length + 1,
      ifname,
      flags: ["BROADCAST", "UP", "LOWER_UP"],
      mtu: 1500,
      operstate: "UP",
      address: "4a:00:00:00:00:01",
      addr_info: addresses.map(address),
      ...more,
    };
    this.links.push(row);
    return row;
  }

  /** Down and up again: the kernel has dropped the routes by then. */
  flap(ifname: string): void {
    this.routes = this.routes.filter(({ dev }) => dev !== ifname);
  }

  readonly run: Run = async (command) => {
    await Promise.resolve();
    const [tool = "", ...words] = command.argv;
    if (words.includes("-batch") && words.includes("-force")) return this.#batch(tool, command);
    if (tool === "nft") return answer("", words.includes("list") ? "Error: No such file or directory" : "");
    const text = words.includes("-batch") ? (command.input ?? []).join("") : words.join(" ");
    return answer(text.split("\n").filter(Boolean).map((line) => this.#shown(tool, line)).join("\n"));
  };

  #shown(tool: string, line: string): string {
    const on = /dev (\S+)/.exec(line)?.[1];
    if (tool === "bridge") {
      return JSON.stringify(this.fdb.filter(({ dev }) => dev === on).map(({ dev: _, ...one }) => one));
    }
    if (line.includes("addr show")) return JSON.stringify(this.links);
    if (line.includes("neigh")) return JSON.stringify(this.neighbours);
    const family = line.startsWith("-6") ? 6 : 4;
    const isDefault = line.endsWith("default");
    const rows = this.routes.filter((one) => one.family === family && (!isDefault || one["dst"] === "default"));
    return JSON.stringify(rows.map(({ family: _, ...one }) => ({ type: "1", ...one })));
  }

  #batch(tool: string, { input = [] }: Command): Output {
    let stderr = "";
    for (const [at, line] of input.join("").split("\n").filter(Boolean).entries()) {
      const refusal = this.interfere(line) ?? this.#change(tool, line);
      this.lines.push(line);
      if (refusal) stderr += `${refusal}\nCommand failed -:${at + 1}\n`;
    }
    return answer("", stderr);
  }

  /** Does what a line says; returns the kernel's refusal. */
  #change(tool: string, line: string): string | void {
    const words = line.split(" ");
    const [object, verb, name = ""] = words;
    const after = (word: string) => words.includes(word) ? words[words.indexOf(word) + 1] : undefined;
    if (tool === "bridge") return this.#changeFdb(verb, { mac: name, dev: after("dev"), dst: after("dst") });
    if (object === "link") return this.#changeLink(verb, after);
    const dev = after("dev") ?? "";
    if (!this.links.some(({ ifname }) => ifname === dev)) return `Cannot find device "${dev}"`;
    const rest = words.slice(3).join(" ").replaceAll(/\b(?:via|dev|proto|protocol|metric|lladdr|nud) \S+/g, "");
    const odd = rest.split(" ").find((word) => word !== "" && word !== "onlink");
    if (odd) return `Error: either "to" is duplicate, or "${odd}" is a garbage.`;
    if (object === "addr") {
      const link = this.links.find(({ ifname }) => ifname === dev)!;
      const rest = (link["addr_info"] as Row[]).filter((one) => `${one["local"]}/${one["prefixlen"]}` !== name);
      link["addr_info"] = verb === "add" ? [...rest, address(name)] : rest;
    } else if (object === "neigh") {
      this.neighbours = this.neighbours.filter((one) => one["dst"] !== name || one["dev"] !== dev);
      if (verb === "replace") this.neighbours.push({ dst: name, dev, lladdr: after("lladdr"), state: ["PERMANENT"] });
    } else {return this.#changeRoute(verb, name, {
        dev,
        gateway: after("via"),
        onlink: words.includes("onlink"),
        protocol: after("proto"),
      });}
  }

  #changeRoute(
    verb: string | undefined,
    dst: string,
    route: { dev: string; gateway?: string | undefined; onlink: boolean; protocol?: string | undefined },
  ): string | void {
    const family = dst.includes(":") ? 6 : 4;
    const { dev, gateway, onlink, protocol } = route;
    const at = this.routes.findIndex((one) =>
      one["dst"] === dst && (verb !== "del" || (one["gateway"] === gateway && one["protocol"] === protocol))
    );
    if (verb === "del") {
      if (at < 0) return "RTNETLINK answers: No such process";
      this.routes.splice(at, 1);
      return;
    }
    if (verb === "add" && at >= 0) return "RTNETLINK answers: File exists";
    const row = {
      family,
      dst,
      gateway,
      dev,
      protocol,
      flags: onlink ? ["onlink"] : [],
      ...(family === 6 && { metric: 1024 }),
    } as const;
    this.routes.splice(at < 0 ? this.routes.length : at, at < 0 ? 0 : 1, row);
  }

  #changeFdb(verb: string | undefined, entry: Row): void {
    this.fdb = this.fdb.filter((one) => one["mac"] !== entry["mac"] || one["dev"] !== entry["dev"]);
    if (verb === "replace") this.fdb.push({ ...entry, flags: ["self"], state: "permanent" });
  }

  #changeLink(verb: string | undefined, after: (word: string) => string | undefined): string | void {
    if (verb === "add") {
      const local = after("local") ?? "";
      this.link(after("name") ?? "", [], {
        address: after("address"),
        mtu: Number(after("mtu")),
        group: after("group"),
        flags: [],
        linkinfo: {
          info_kind: "vxlan",
          info_data: {
            id: Number(after("id")),
            port: Number(after("dstport")),
            link: after("dev"),
            [local.includes(":") ? "local6" : "local"]: local,
          },
        },
      });
      return;
    }
    const dev = after("dev") ?? "";
    const link = this.links.find(({ ifname }) => ifname === dev);
    if (!link) return `Cannot find device "${dev}"`;
    if (verb === "del") {
      this.links = this.links.filter((one) => one !== link);
      this.routes = this.routes.filter((one) => one["dev"] !== dev);
      this.neighbours = this.neighbours.filter((one) => one["dev"] !== dev);
      this.fdb = this.fdb.filter((one) => one["dev"] !== dev);
      return;
    }
    if (after("group")) link["group"] = after("group");
    if (after("address")) link["address"] = after("address");
    if (after("mtu")) link["mtu"] = Number(after("mtu"));
    if (after(dev) === "up") link["flags"] = ["UP"];
  }
}

function address(text: string): Row {
  const [local = "", length = ""] = text.split("/");
  return { family: local.includes(":") ? "inet6" : "inet", local, prefixlen: Number(length), scope: "0" };
}

function answer(stdout: string, stderr = ""): Output {
  return { code: stderr === "" ? 0 : 1, signal: null, stdout, stderr };
}
