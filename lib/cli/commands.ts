/** Every operator command, declared. Help, completion and docs/commands/ are made from this. */
import type { Flag, OperatorCommand, Positional } from "./command.ts";

const YES: Flag = { name: "yes", short: "y", about: "do not ask" };
const JSON_FLAG: Flag = { name: "json", about: "print JSON for scripts" };
const VERBOSE: Flag = {
  name: "verbose",
  short: "v",
  about: "list every case of a problem that several things have",
};
const folder = (name: string, about: string): Flag => ({ name, value: "DIR", kind: "folder", about });
const ROOT = folder("root", "look for configuration, cache, leases and plugins below this folder");
const CONF_DIR = folder("conf-dir", "folder of network configurations; default $NETCONFPATH or /etc/cni/net.d");
const CACHE_DIR = folder("cache-dir", "folder of attachments and their results; default /var/lib/cni/results");
const CNI_PATH: Flag = {
  name: "cni-path",
  value: "DIRS",
  about: "folders of plugins, separated by colons; default $CNI_PATH or /opt/cni/bin, then the plugins in cnibox",
};
const CONF: Flag = {
  name: "conf",
  value: "FILE",
  kind: "file",
  about: "read the network from this file instead (list or single configuration, comments allowed, - is stdin)",
};
const PLACES = [CONF_DIR, CACHE_DIR, CNI_PATH, ROOT];
const BIN_DIR = folder("bin-dir", "the plugin folder; default /opt/cni/bin");
const PATH_DIR = folder(
  "path-dir",
  'folder on the PATH for links to cnibox and cnitool, "" for none; default /usr/local/bin, none with --bin-dir',
);
const PLUGINS: Flag = { name: "plugins", value: "A,B", about: "only these plugins" };
const DATA_DIR = folder(
  "data-dir",
  "folder of host-local's leases where the configuration names none; default /var/lib/cni/networks",
);
const LEASE_PLACES = [CONF_DIR, CACHE_DIR, DATA_DIR, ROOT];
const IFNAME: Flag = {
  name: "ifname",
  value: "NAME",
  about: "interface in the container; default $CNI_IFNAME or eth0; further networks count on from it",
};
const ID: Flag = {
  name: "id",
  value: "ID",
  kind: "container",
  about:
    "container ID, or NAMESPACE/POD; default: that of the attachment on disk, else cnitool's, made of the namespace's path",
};
const REQUESTS: readonly Flag[] = [
  {
    name: "publish",
    short: "p",
    value: "PORTS",
    many: true,
    about: "publish a port: [HOSTIP:]HOSTPORT:CONTAINERPORT[/tcp|udp|sctp], ranges allowed",
  },
  { name: "ip", value: "ADDRESS", many: true, about: "ask for an address" },
  { name: "mac", value: "MAC", about: "hardware address in the container" },
  {
    name: "bandwidth",
    value: "RATE",
    about: "limit rates: IN[/OUT], bits a second, each RATE or RATE:BURST (100M, 1G:4M)",
  },
  { name: "cap", value: "JSON", about: "capability arguments as a JSON object, over those of $CAP_ARGS" },
  { name: "arg", value: "KEY=VALUE", many: true, about: "a pair for CNI_ARGS, after those of $CNI_ARGS" },
];
const TRACE: readonly Flag[] = [
  { name: "trace", about: "every command with time, exit status and output on standard error, one JSON object a line" },
  { name: "trace-file", value: "FILE", kind: "file", about: "the same, appended to a file" },
];
const WATCH: readonly Flag[] = [
  { name: "timeout", value: "SECONDS", about: "stop waiting for plugins after this long, and undo what was done" },
  ...TRACE,
];

const PREVIEW: Flag = { name: "dry-run", about: "show what would be done, as cnibox explain does" };

const TABLE: readonly Flag[] = [
  { name: "no-headings", about: "without the line of titles" },
  { name: "no-trunc", about: "whole IDs, and cells that are not cut to the terminal's width" },
];

const NETWORK: Positional = {
  name: "NETWORK",
  kind: "network",
  unless: "conf",
  about: "name of a network; several are separated by commas",
};
const ONLY_NETWORK: Positional = { name: "NETWORK", about: "only this network", optional: true, kind: "network" };
const ONLY_POOL: Positional = { name: "POOL", about: "only this pool", optional: true };
const LIST_FILE: Positional = { name: "FILE", kind: "file", about: "a configuration list; - is standard input" };
const NETNS: Positional = {
  name: "NETNS",
  kind: "netns",
  about: "the container's namespace: a path, a name below /run/netns, or pid:N",
};

const cluster = () => import("./pools.ts");
const ipam = () => import("./ipam.ts");
const network = () => import("./network.ts");

/** A command as it is declared here: without what it does not take. */
type Declared = Omit<OperatorCommand, "positional" | "flags"> & Partial<OperatorCommand>;

const DECLARED: readonly Declared[] = [
  {
    name: "add",
    group: "run",
    summary: "attach a namespace to a network",
    about: [
      "Runs the network's plugins as a runtime does, in one process where they are cnibox itself, and keeps the result " +
      "where runtimes and cnitool keep theirs. When a plugin fails, what the others did is undone in reverse order. " +
      "Prints the result as JSON when standard output is not a terminal.",
    ],
    positional: [NETWORK, NETNS],
    flags: [
      CONF,
      IFNAME,
      { ...ID, about: "container ID; default: cnitool's, made of the namespace's path" },
      ...REQUESTS,
      { name: "create", about: "make the namespace first, if there is none of that name" },
      PREVIEW,
      ...WATCH,
      JSON_FLAG,
      ...PLACES,
    ],
    examples: [
      ["a namespace to play with, and a published port", "cnibox add mynet box --create -p 8080:80"],
      ["a running process", "cnibox add mynet pid:1234 --ip 10.88.0.7"],
    ],
    run: async (call) => (await network()).add(call),
  },
  {
    name: "check",
    group: "run",
    summary: "look whether an attachment is as it should be",
    positional: [NETWORK, { ...NETNS, unless: "id" }],
    flags: [CONF, IFNAME, ID, ...REQUESTS, ...WATCH, JSON_FLAG, ...PLACES],
    examples: [["after somebody touched the firewall", "cnibox check mynet box"]],
    run: async (call) => (await network()).check(call),
  },
  {
    name: "del",
    group: "run",
    summary: "detach a namespace from a network",
    about: [
      "Plugins run in reverse order, with the result and the arguments of the attachment on disk. It may be repeated, " +
      "and works when the namespace is gone or the configuration was removed.",
    ],
    positional: [NETWORK, { ...NETNS, unless: "id" }],
    flags: [
      CONF,
      IFNAME,
      ID,
      ...REQUESTS,
      { name: "force", about: "go on past a plugin that fails" },
      PREVIEW,
      ...WATCH,
      JSON_FLAG,
      ...PLACES,
    ],
    examples: [
      ["by namespace", "cnibox del mynet box"],
      ["by container, when its namespace is gone", "cnibox del mynet --id 4f1c2a"],
    ],
    run: async (call) => (await network()).del(call),
  },
  {
    name: "run",
    group: "run",
    summary: "run a command in a namespace of its own, attached to networks",
    about: [
      "Makes a namespace, attaches it, runs the command inside, and removes all of it again, whatever happens. " +
      "The exit status is the command's.",
    ],
    positional: [NETWORK],
    rest: { name: "COMMAND…", about: "the command and its arguments" },
    flags: [
      CONF,
      IFNAME,
      { ...ID, about: "container ID; default: made of the namespace's path" },
      ...REQUESTS,
      ...WATCH.map((flag) =>
        flag.name === "timeout"
          ? { ...flag, about: "stop waiting for plugins after this long; the command may take longer" }
          : flag
      ),
      ...PLACES,
    ],
    examples: [
      ["look around", "cnibox run mynet -- ip address"],
      ["a web server on the host's port 8080", "cnibox run mynet -p 8080:80 -- python3 -m http.server 80"],
    ],
    statuses: [[125, "cnibox failed before the command was started"]],
    run: async (call) => (await import("./run.ts")).run(call),
  },
  {
    name: "status",
    group: "run",
    summary: "the node's health on one screen; of a network, whether the next container can be attached",
    about: [
      "Without a network: how many networks and attachments there are, how full the ranges are, and each kind of problem once, " +
      "with the command that repairs all of it. Changes nothing, and works without root as far as rights go.",
      "With a network: asks its plugins by the protocol's STATUS.",
    ],
    positional: [{ ...NETWORK, optional: true }],
    flags: [CONF, ...WATCH, JSON_FLAG, DATA_DIR, ...PLACES],
    examples: [["is this node well?", "cnibox status"], ["before a rollout", "cnibox status mynet"]],
    statuses: [[0, "healthy, or ready"], [1, "problems were found, or a plugin is not ready"]],
    run: async (call) => (await network()).networkStatus(call),
  },
  {
    name: "explain",
    group: "explain",
    summary: "show what add or del would do, as shell that does the same",
    about: [
      "Links, addresses, routes, rules, settings and files, in order, grouped by namespace, each with its reason. It comes " +
      "from the same plans that add and del carry out. Nothing is changed, and most of it works without root.",
    ],
    positional: [{ name: "VERB", about: "add or del", oneOf: ["add", "del"] }, NETWORK, { ...NETNS, unless: "id" }],
    flags: [
      CONF,
      IFNAME,
      ID,
      ...REQUESTS,
      { name: "questions", about: "also show what is only asked" },
      JSON_FLAG,
      ...PLACES,
    ],
    examples: [
      ["what would happen?", "cnibox explain add mynet box -p 8080:80"],
      ["do it by hand", "cnibox explain add mynet box | sh"],
    ],
    run: async (call) => (await import("./explain.ts")).explain(call),
  },
  {
    name: "validate",
    group: "explain",
    summary: "find what is wrong with configurations, with line, column and suggestion",
    about: [
      "Looks at files, or at all files of folders: what JSON and the protocol demand, every key of every plugin, values " +
      "that do not fit together, and across the files of a folder network names, subnets and bridges. Says which file " +
      "runtimes will take. Nothing is changed.",
    ],
    positional: [{
      name: "FILE",
      kind: "file",
      many: true,
      optional: true,
      about: "file or folder; default: the folder of configurations; - is standard input",
    }],
    flags: [
      { name: "timeout", value: "SECONDS", about: "how long a foreign plugin may take to say its versions" },
      JSON_FLAG,
      CONF_DIR,
      CNI_PATH,
      ROOT,
    ],
    examples: [
      ["this node", "cnibox validate"],
      ["in a pipeline, before it is rolled out", "cnibox validate --json net.d/10-mynet.conflist"],
    ],
    statuses: [[0, "nothing wrong"], [1, "warnings"], [2, "errors"]],
    run: async (call) => (await import("./validate.ts")).validate(call),
  },
  {
    name: "fold",
    group: "explain",
    summary: "print a network list with its plugins as members of one chain",
    about: [
      "A runtime then starts one process for the whole list. Nothing else of the file changes, and what the plugins leave " +
      "on the node is the same, so that lists can be swapped while containers live. Reference plugins cannot run a chain.",
    ],
    positional: [LIST_FILE],
    examples: [[
      "fold a network",
      "cnibox fold /etc/cni/net.d/10-pods.conflist >pods.new && mv pods.new /etc/cni/net.d/10-pods.conflist",
    ]],
    run: async (call) => (await import("./fold.ts")).fold(call),
  },
  {
    name: "unfold",
    group: "explain",
    summary: "print a network list with the members of its chain in the list itself",
    about: ["The reverse of cnibox fold: what it prints can be run by any set of plugins."],
    positional: [LIST_FILE],
    examples: [["back to a list for the reference plugins", "cnibox unfold /etc/cni/net.d/10-pods.conflist"]],
    run: async (call) => (await import("./fold.ts")).unfold(call),
  },
  {
    name: "schema",
    group: "explain",
    summary: "JSON Schema of lists or of one plugin's configuration, for editors",
    positional: [{
      name: "WHAT",
      kind: "schema",
      optional: true,
      about: "a plugin, or conflist, which is the default",
    }],
    examples: [
      ["for an editor", "cnibox schema conflist >cni.schema.json"],
      ["what does bridge take?", "cnibox schema bridge"],
    ],
    run: async (call) => (await import("./schema.ts")).schema(call),
  },
  {
    name: "node",
    group: "run",
    summary: "lease this node a subnet, and keep the ways to all other nodes",
    about: [
      "Stays, and does flannel's job: takes a subnet of the network for this node, writes what the flannel plugin reads, and keeps " +
      "routes, vxlan devices and what is on them as the records of all nodes want them. When the store does not answer, everything " +
      "stays as it is; when this program ends, too. Docs: docs/node.md.",
    ],
    flags: [
      { name: "conf", value: "FILE", kind: "file", about: "the configuration; default /etc/cnibox/node.json" },
      { name: "once", about: "one round, then end" },
      { name: "explain", about: "print the commands that would repair this node's kernel now; change nothing" },
      {
        name: "withdraw",
        about: "remove everything that is this program's: routes, devices, rules, files, the node's record",
      },
      { name: "take-over", about: "adopt the device, routes and files that flanneld left, where they say the same" },
      { name: "json", about: "with --once, --explain and --withdraw: print JSON for scripts" },
    ],
    examples: [
      ["try a configuration", "cnibox node --conf node.json --once"],
      ["what is wrong with the routes", "cnibox node --explain"],
      ["take a node out of the network", "cnibox node --withdraw"],
    ],
    run: async (call) => (await import("./node_agent.ts")).node(call),
  },
  {
    name: "node status",
    group: "show",
    summary: "how this node's part of the network is: subnets, store, other nodes, and what keeps it from them",
    flags: [JSON_FLAG],
    examples: [["for a probe: exit status 0 when ready", "cnibox node status --json"]],
    statuses: [[0, "running and ready"], [1, "not running, or not ready"]],
    run: async (call) => (await import("./node_agent.ts")).nodeStatus(call),
  },
  {
    name: "cluster pools",
    group: "show",
    summary: "the pools of addresses that nodes share, and how much of each is taken",
    flags: [JSON_FLAG, CONF_DIR, ROOT],
    examples: [["all pools", "cnibox cluster pools"]],
    run: async (call) => (await cluster()).listPools(call),
  },
  {
    name: "cluster blocks",
    group: "show",
    summary: "which node holds which block of a pool, since when, and how full this node's own are",
    positional: [ONLY_POOL],
    flags: [JSON_FLAG, CONF_DIR, ROOT],
    examples: [["one pool", "cnibox cluster blocks pods"]],
    run: async (call) => (await cluster()).listBlocks(call),
  },
  {
    name: "cluster find",
    group: "show",
    summary: "which node an address belongs to, and which container of this node has it",
    positional: [{ name: "ADDRESS", about: "the address" }],
    flags: [JSON_FLAG, CONF_DIR, ROOT],
    examples: [["whose address is it", "cnibox cluster find 10.42.3.7"]],
    run: async (call) => (await cluster()).find(call),
  },
  {
    name: "cluster check",
    group: "show",
    summary: "hold the store's records against this node's files, both ways",
    positional: [ONLY_POOL],
    flags: [JSON_FLAG, CONF_DIR, ROOT],
    examples: [["after the store was restored from a backup", "cnibox cluster check"]],
    statuses: [[0, "records and files agree"], [1, "they do not, or could not be looked at"]],
    run: async (call) => (await cluster()).check(call),
  },
  {
    name: "cluster trim",
    group: "repair",
    summary: "return the blocks of which this node uses no address",
    positional: [ONLY_POOL],
    flags: [JSON_FLAG, CONF_DIR, ROOT],
    examples: [["before a node is taken out of service", "cnibox cluster trim"]],
    run: async (call) => (await cluster()).trim(call),
  },
  {
    name: "cluster forget",
    group: "repair",
    summary: "free the blocks of a node that is gone for good",
    about: [
      "Its addresses may be given to others then. A node that is only silent may be cut off, with its containers alive: make sure that it is switched off.",
    ],
    positional: [{ name: "NODE", about: "the node's name" }],
    flags: [
      YES,
      { name: "force", about: "also when it is this very node" },
      JSON_FLAG,
      CONF_DIR,
      ROOT,
    ],
    examples: [["a node that was scrapped", "cnibox cluster forget node7"]],
    run: async (call) => (await cluster()).forget(call),
  },
  {
    name: "ipam",
    group: "show",
    summary: "how full the address ranges of this node are",
    about: [
      "Ranges of host-local and cluster, with what is taken and free; of a cluster's pool the part that is this node's. Leases, cached attachments and the kernel are looked at together; nothing is changed.",
    ],
    positional: [ONLY_NETWORK],
    flags: [JSON_FLAG, ...LEASE_PLACES],
    examples: [["all networks", "cnibox ipam"]],
    run: async (call) => (await ipam()).usage(call),
  },
  {
    name: "ipam list",
    group: "show",
    summary: "every address that is taken, by whom, since when, and whether the owner lives",
    positional: [ONLY_NETWORK],
    flags: [JSON_FLAG, ...LEASE_PLACES],
    examples: [["one network", "cnibox ipam list pods"]],
    run: async (call) => (await ipam()).list(call),
  },
  {
    name: "ipam find",
    group: "show",
    summary: "who holds an address, or which addresses a container holds",
    positional: [{ name: "WHAT", about: "an address, or a container ID or its beginning", kind: "container" }],
    flags: [JSON_FLAG, ...LEASE_PLACES],
    examples: [["whose address is it", "cnibox ipam find 10.85.0.7"]],
    run: async (call) => (await ipam()).find(call),
  },
  {
    name: "ipam check",
    group: "show",
    summary: "addresses whose owner is gone, owners whose address is not recorded, duplicates, odd files",
    positional: [ONLY_NETWORK],
    flags: [VERBOSE, JSON_FLAG, ...LEASE_PLACES],
    examples: [["is anything wrong", "cnibox ipam check || cnibox ipam repair --dry-run"]],
    statuses: [[0, "nothing wrong"], [1, "something is wrong, or could not be looked at"]],
    run: async (call) => (await ipam()).check(call),
  },
  {
    name: "ipam free",
    group: "repair",
    summary: "release addresses by hand",
    positional: [{ name: "ADDRESS", about: "the address", many: true }],
    flags: [
      { name: "network", value: "NAME", kind: "network", about: "where, when several networks have the address" },
      YES,
      { name: "force", about: "also when it is in use" },
      JSON_FLAG,
      ...LEASE_PLACES,
    ],
    examples: [["an address that nobody uses", "cnibox ipam free 10.85.0.7"]],
    run: async (call) => (await ipam()).free(call),
  },
  {
    name: "ipam repair",
    group: "repair",
    summary: "release what belongs to nobody, record what is used",
    about: [
      "Releases addresses whose container is provably gone and empty files, and writes down addresses that living containers use and no file names. Takes the plugins' lock. What was removed is kept in /var/lib/cnibox/removed-leases. What cannot be proved is left alone. Shows what it would do and asks first.",
    ],
    positional: [ONLY_NETWORK],
    flags: [
      { name: "all", about: "every network that keeps addresses" },
      YES,
      { name: "dry-run", about: "only say what would be done" },
      JSON_FLAG,
      ...LEASE_PLACES,
    ],
    examples: [["look first", "cnibox ipam repair --dry-run"], ["then do it", "cnibox ipam repair pods"]],
    run: async (call) => (await ipam()).repair(call),
  },
  {
    name: "gc",
    group: "repair",
    summary: "remove what dead containers left of a network",
    about: [
      "Valid are the attachments whose namespace lives and the owners of addresses that are in use. DEL is called for every other attachment in the cache, then GC of every plugin with the list of the valid ones. Shows what would go and asks first.",
      "The configuration of a network that is not configured any more is the one that its attachments were made with.",
    ],
    positional: [{ ...NETWORK, optional: true }],
    flags: [
      CONF,
      { name: "all", about: "every network that is configured or attached to" },
      YES,
      { name: "dry-run", about: "only say what would go" },
      JSON_FLAG,
      DATA_DIR,
      ...PLACES,
    ],
    examples: [["look first", "cnibox gc pods --dry-run"], ["without being asked", "cnibox gc pods --yes"]],
    run: async (call) => (await import("./gc.ts")).gc(call),
  },
  {
    name: "restore",
    group: "repair",
    summary: "make the firewall rules of living containers again, after a reload or a flush",
    about: [
      "Masquerading, published ports and firewall rules of attachments whose namespace lives are made again from the cached results; what is there stays as it is, so this can be repeated. All that is missing, of all containers, goes in with one transaction: one for nft, and one each for iptables and ip6tables, which commit it table by table (raw, filter, nat).",
      "The unit cnibox-restore.service does this after firewalld or nftables starts again.",
    ],
    flags: [
      { name: "all", about: "every living attachment of this node" },
      { ...ID, about: "only this container's" },
      { name: "dry-run", about: "only say what is missing" },
      ...TRACE,
      JSON_FLAG,
      ...PLACES,
    ],
    examples: [
      ["after firewall-cmd --reload", "cnibox restore --all"],
      ["what is missing", "cnibox restore --all --dry-run"],
    ],
    run: async (call) => (await import("./restore.ts")).restore(call),
  },
  {
    name: "networks",
    group: "show",
    summary: "the networks of this node, one line each",
    flags: [{ name: "quiet", short: "q", about: "only the names" }, ...TABLE, JSON_FLAG, ...LEASE_PLACES],
    examples: [["what can be attached to?", "cnibox networks"], ["for a loop", "cnibox networks -q"]],
    run: async (call) => (await import("./networks.ts")).networks(call),
  },
  {
    name: "inspect",
    group: "show",
    summary: "one network: its plugins and their settings, ranges, gateways, attachments",
    positional: [{ name: "NETWORK", kind: "network", about: "name of a network" }],
    flags: [JSON_FLAG, ...LEASE_PLACES],
    examples: [["all of one network", "cnibox inspect mynet"]],
    run: async (call) => (await import("./networks.ts")).inspect(call),
  },
  {
    name: "show",
    group: "show",
    summary: "networks of this node and what is attached, with what disagrees",
    about: [
      "Reads the runtimes' cache, the leases, the kernel's links and the rules, and puts them side by side. Whatever one of " +
      "them knows and the others do not is marked, with the command that repairs it.",
      "Of a container, a pod or an address it shows all: counters of both ends, published ports, limits, rules.",
    ],
    positional: [{
      name: "WHAT",
      optional: true,
      kind: "shown",
      about: "a network, or a container (ID or its beginning), a pod (NAMESPACE/NAME) or an address",
    }],
    flags: [
      { name: "network", value: "NAME", kind: "network", about: "only this network" },
      { name: "pod", value: "NAME", kind: "pod", about: "only this pod: NAMESPACE/NAME, or its name alone" },
      { name: "problems", about: "only attachments with problems" },
      { name: "watch", short: "w", about: "look again every two seconds" },
      { name: "quiet", short: "q", about: "only container IDs" },
      {
        name: "format",
        value: "TEMPLATE",
        about: 'json, or a line for each attachment with keys of the JSON: "{{.containerId}} {{.addresses}}"',
      },
      ...TABLE,
      JSON_FLAG,
      ...LEASE_PLACES,
    ],
    examples: [
      ["the whole node", "cnibox show"],
      ["everything about a pod", "cnibox show default/web"],
      ["what needs attention", "cnibox show --problems"],
      ["what a script wants to know", "cnibox show mynet --json"],
    ],
    run: async (call) => (await import("./show.ts")).show(call),
  },
  {
    name: "events",
    group: "show",
    summary: "a line for each attachment that comes or goes, until it is stopped",
    about: [
      "Known from the runtimes' cache, from leases and from the alias of the host's end, whichever runtime made the attachment.",
    ],
    positional: [ONLY_NETWORK],
    flags: [
      { name: "count", short: "n", value: "NUMBER", about: "end after so many" },
      { ...JSON_FLAG, about: "an object a line instead" },
      ...LEASE_PLACES,
    ],
    examples: [["who comes, who goes?", "cnibox events"], ["for a script", "cnibox events --json --count 1"]],
    run: async (call) => (await import("./events.ts")).events(call),
  },
  {
    name: "report",
    group: "show",
    summary: "one archive with all that somebody needs who is asked for help",
    about: [
      "Configuration, what status, show, doctor, ipam and validate say, links, routes, rules, versions, and the end of the logs. " +
      "Keys, tokens and passwords are left out, as far as they can be told by their names and their looks: look through it " +
      "before you hand it on. Nothing is changed.",
    ],
    positional: [{ name: "FILE", kind: "file", optional: true, about: "the archive (tar); - is standard output" }],
    flags: LEASE_PLACES,
    examples: [["for a bug report", "cnibox report"], ["from afar", "ssh node cnibox report - >node.tar"]],
    run: async (call) => (await import("./report.ts")).report(call),
  },
  {
    name: "graph",
    group: "show",
    summary: "a picture of the node: interfaces, bridges, containers, addresses, NAT",
    positional: [{ ...NETWORK, optional: true, about: "only this network" }],
    flags: [
      {
        name: "format",
        short: "f",
        value: "FORMAT",
        oneOf: ["tree", "mermaid", "dot", "svg"],
        about: "how it is drawn; default tree",
      },
      ...LEASE_PLACES,
    ],
    examples: [
      ["in the terminal", "cnibox graph"],
      ["to look at", "cnibox graph --format svg >node.svg"],
    ],
    run: async (call) => (await import("./graph.ts")).graph(call),
  },
  {
    name: "doctor",
    group: "show",
    summary: "diagnose common problems and suggest fixes",
    about: [
      "Configuration and what runtimes make of it, plugin files, tools, kernel, forwarding, firewalls, MTU, addresses, " +
      "attachments, bridges, daemons, disk. Changes nothing without --fix, which runs the fixes that do no harm and shows " +
      "each command first.",
    ],
    flags: [
      VERBOSE,
      { name: "fix", about: "run the fixes that do no harm" },
      JSON_FLAG,
      CONF_DIR,
      CACHE_DIR,
      DATA_DIR,
      CNI_PATH,
      ROOT,
    ],
    examples: [["why do containers get no network?", "cnibox doctor"]],
    statuses: [[0, "all well"], [1, "warnings"], [2, "failures"]],
    run: async (call) => (await import("./doctor/doctor.ts")).doctor(call),
  },
  {
    name: "plugins",
    group: "show",
    summary: "the plugins in this program, one line each",
    flags: [{ name: "names", about: "only the names" }, JSON_FLAG],
    examples: [["what is in it", "cnibox plugins"]],
    run: async (call) => (await import("./about.ts")).plugins(call),
  },
  {
    name: "install",
    group: "install",
    summary: "put this executable and a symlink for every plugin into a folder",
    about: [
      "The executable is tried where it will live, then takes its place by rename: calls that are under way and calls that begin meanwhile all work. The one before is kept for rollback. Plugins that are not ours stay as they are: they are named with the command that swaps them (--replace), and the exit status says so.",
      "The command line that runs networks is linked as well: cnitool in the folder of the plugins, cnibox and cnitool on the PATH. Where something of that name exists, it stays.",
    ],
    flags: [
      BIN_DIR,
      PATH_DIR,
      PLUGINS,
      { name: "replace", about: "swap plugins that are not ours for ours; uninstall puts them back" },
      folder(
        "units",
        "put the systemd units there; without it into /etc/systemd/system where systemd runs and plugins go into " +
          "/opt/cni/bin. None is enabled or started",
      ),
      { name: "no-units", about: "install no systemd units" },
      JSON_FLAG,
    ],
    examples: [
      ["into /opt/cni/bin", "./cnibox install"],
      ["in place of the plugins that are there, and the way back", "./cnibox install --replace && cnibox uninstall"],
    ],
    statuses: [[73, "installed, except where plugins that are not ours stay as they are"]],
    run: async (call) => (await import("./install.ts")).install(call),
  },
  {
    name: "rollback",
    group: "install",
    summary: "put the executable from before the last change back",
    flags: [BIN_DIR, JSON_FLAG],
    examples: [["the last upgrade was no good", "cnibox rollback"]],
    run: async (call) => (await import("./install.ts")).rollback(call),
  },
  {
    name: "uninstall",
    group: "install",
    summary: "remove executable, symlinks and systemd units, put replaced files back",
    flags: [BIN_DIR, PATH_DIR, JSON_FLAG],
    examples: [["from /opt/cni/bin", "cnibox uninstall"]],
    run: async (call) => (await import("./install.ts")).uninstall(call),
  },
  {
    name: "image",
    group: "install",
    summary: "write an OCI image of this executable, without network or daemon",
    about: [
      "An archive of an OCI layout with one file in one layer. The same executable gives the same digest everywhere. It runs with the " +
      "node's own C library and tools, which the manifest mounts.",
    ],
    positional: [{ name: "FILE", about: "the archive", kind: "file" }],
    flags: [
      { name: "name", value: "NAME:TAG", about: "name of the image; default localhost/cnibox:VERSION" },
      JSON_FLAG,
    ],
    examples: [
      ["for containerd", "cnibox image cnibox.tar && ctr -n k8s.io image import cnibox.tar"],
      [
        "for a registry",
        "cnibox image cnibox.tar && skopeo copy oci-archive:cnibox.tar docker://registry.example/cnibox:1",
      ],
    ],
    run: async (call) => (await import("./image.ts")).image(call),
  },
  {
    name: "deb",
    group: "install",
    summary: "write a Debian package of this executable, without network",
    about: [
      "With manual pages and completion. Installing it links the plugins into /opt/cni/bin as cnibox install does, removing it undoes " +
      "that, purging it removes /var/lib/cnibox as well. Needs dpkg-deb.",
    ],
    positional: [{ name: "FILE", about: "the package, or a folder for cnibox_VERSION_ARCH.deb", kind: "file" }],
    flags: [JSON_FLAG],
    examples: [["make and install it", "cnibox deb cnibox.deb && dpkg -i cnibox.deb"]],
    run: async (call) => (await import("./deb.ts")).deb(call),
  },
  {
    name: "manifest",
    group: "install",
    summary: "print what kubectl applies to install plugins and network on every node, or to remove them",
    flags: [
      { name: "image", value: "NAME", about: "the image; default localhost/cnibox:VERSION" },
      { name: "namespace", value: "NAME", about: "default kube-system" },
      {
        name: "network",
        value: "CIDR",
        many: true,
        about: "pod network of the cluster, one per family; default 10.244.0.0/16",
      },
      { name: "backend", value: "TYPE", oneOf: ["vxlan", "host-gw", "none"], about: "default vxlan" },
      { name: "uninstall", value: "NODE", many: true, about: "print a Job that removes everything from this node" },
    ],
    examples: [
      [
        "both families, nodes on one link",
        "cnibox manifest --network 10.244.0.0/16 --network fd44::/48 --backend host-gw | kubectl apply -f -",
      ],
      ["remove it from two nodes", "cnibox manifest --uninstall node1 --uninstall node2 | kubectl apply -f -"],
    ],
    run: async (call) => (await import("./manifest.ts")).manifest(call),
  },
  {
    name: "verify",
    group: "install",
    summary: "is everything in place, owned by root, and this version",
    flags: [BIN_DIR, PLUGINS, { name: "sha256", value: "SUM", about: "what the executable has to be" }, JSON_FLAG],
    examples: [["after an upgrade", "cnibox verify"]],
    statuses: [[0, "everything is in place"], [1, "something is not"]],
    run: async (call) => (await import("./install.ts")).verify(call),
  },
  {
    name: "version",
    group: "install",
    summary: "version of this program",
    flags: [{ name: "sbom", about: "what it is made of, as CycloneDX" }, JSON_FLAG],
    examples: [["which one is this?", "cnibox version"]],
    run: async (call) => (await import("./about.ts")).version(call),
  },
  {
    name: "man",
    group: "install",
    summary: "manual pages: cnibox(8), and one for every plugin",
    positional: [{ name: "PAGE", kind: "plugin", optional: true, about: "cnibox, which is the default, or a plugin" }],
    flags: [folder("dir", "write all pages into man8 below this folder instead")],
    examples: [
      ["read one", "cnibox man bridge | man -l -"],
      ["for everybody on this machine", "cnibox man --dir /usr/local/share/man"],
    ],
    run: async (call) => (await import("./man.ts")).man(call),
  },
  {
    name: "completion",
    group: "install",
    summary: "completion for a shell",
    positional: [{ name: "SHELL", about: "the shell", kind: "shell", oneOf: ["bash", "zsh", "fish"] }],
    examples: [
      ["for this session of bash", "source <(cnibox completion bash)"],
      ["for every session of bash", "cnibox completion bash >/etc/bash_completion.d/cnibox"],
      ["for zsh", 'cnibox completion zsh >"${fpath[1]}/_cnibox"'],
      ["for fish", "cnibox completion fish >~/.config/fish/completions/cnibox.fish"],
    ],
    run: async (call) => (await import("./completion.ts")).completion(call),
  },
  {
    name: "complete",
    group: "install",
    summary: "words for completion",
    hidden: true,
    positional: [{ name: "KIND", about: "network, netns, plugin, schema, container, pod or shown" }],
    flags: [...PLACES],
    examples: [],
    run: async (call) => (await import("./completion.ts")).complete(call),
  },
];

/** All commands, in the order in which people are shown them. */
export const COMMANDS: readonly OperatorCommand[] = DECLARED.map((one) => ({ positional: [], flags: [], ...one }));

/** The command that a line begins with: two words where there is such a command, else one. */
export function findCommand(
  args: readonly string[],
): { command: OperatorCommand; args: readonly string[] } | undefined {
  const two = COMMANDS.find(({ name }) => name === `${args[0]} ${args[1]}`);
  if (two) return { command: two, args: args.slice(2) };
  const one = COMMANDS.find(({ name }) => name === args[0]);
  return one && { command: one, args: args.slice(1) };
}
