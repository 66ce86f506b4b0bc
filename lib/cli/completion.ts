/** `cnibox completion SHELL`: scripts made from the declarations; names of networks and the like are asked for. */
import { loadAll } from "../cni/conflist.ts";
import { type CommandCall, type Flag, flagAbout, HELP, type Kind, type OperatorCommand } from "./command.ts";
import { COMMANDS } from "./commands.ts";
import { podOf } from "./owner_names.ts";
import { attachmentsOf, type Folders, foldersOf, netnsNames } from "./setup.ts";
import { say } from "./terminal.ts";

/** `cnibox completion` */
export function completion(call: CommandCall): number {
  say(completionScript(call.arg("SHELL") ?? ""));
  return 0;
}

/** The script for a shell. */
export function completionScript(shell: string): string {
  return shell === "bash" ? bash() : shell === "zsh" ? zsh() : fish();
}

/** `cnibox complete KIND`: what the scripts ask for. Says nothing when it cannot tell. */
export function complete(call: CommandCall): number {
  const folders = foldersOf(call);
  const words = (): readonly string[] => {
    switch (call.arg("KIND")) {
      case "network":
        return loadAll(folders.conf).lists.map(({ name }) => name);
      case "netns":
        return netnsNames();
      case "container":
        return containers(folders);
      case "pod":
        return attachmentsOf(folders).flatMap((one) => podOf(one) ?? []);
      case "shown":
        return [...loadAll(folders.conf).lists.map(({ name }) => name), ...containers(folders)];
      case "plugin":
        return call.invocation.names;
      case "schema":
        return [...call.invocation.names, "conflist"];
      default:
        return [];
    }
  };
  try {
    say([...new Set(words())].map((word) => `${word}\n`).join(""));
  } catch {
    // Completion never complains.
  }
  return 0;
}

/** By every name that is understood. */
function containers(folders: Folders): string[] {
  return attachmentsOf(folders).flatMap((one) => [one.containerId, ...[podOf(one) ?? []].flat()]);
}

const shown = (): readonly OperatorCommand[] => COMMANDS.filter(({ hidden }) => !hidden);
const flagsOf = (command: OperatorCommand): readonly Flag[] => [...command.flags, HELP];
const spellings = ({ name, short }: Flag): string[] => [`--${name}`, ...(short ? [`-${short}`] : [])];
const ASKED: readonly Kind[] = ["network", "netns", "container", "pod", "shown", "plugin", "schema"];

/** First words and what they lead to: `ipam` → list, find, … */
function secondWords(): Map<string, string[]> {
  const words = new Map<string, string[]>();
  for (const { name } of shown()) {
    const [first = "", second] = name.split(" ");
    const known = words.get(first) ?? [];
    words.set(first, second === undefined ? known : [...known, second]);
  }
  return words;
}

/** What the command does, or the first one that begins with this word. */
function summaryOf(word: string): string {
  const found = shown().find(({ name }) => name === word) ?? shown().find(({ name }) => name.startsWith(`${word} `));
  return found?.summary ?? "";
}

/** One quoted word for a shell. */
const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;

function bash(): string {
  const kinds = shown().map((command) => {
    const kind = command.positional.map(({ kind, oneOf }) => oneOf ? oneOf.join("|") : kind ?? "-").join(" ");
    return `    ${quoted(command.name)}) kinds=(${kind ? kind.split(" ").map(quoted).join(" ") : ""});;\n`;
  }).join("");
  const flags = shown().map((command) =>
    `    ${quoted(command.name)}) flags=${quoted(flagsOf(command).flatMap(spellings).join(" "))};;\n`
  ).join("");
  const values = new Map<string, string[]>();
  for (const flag of shown().flatMap(flagsOf)) {
    if (flag.value === undefined) continue;
    const kind = flag.oneOf ? flag.oneOf.join("|") : flag.kind ?? "-";
    const known = values.get(kind) ?? [];
    values.set(kind, [...new Set([...known, ...spellings(flag)])]);
  }
  const cases = [...values].map(([kind, names]) => `    ${names.join("|")}) kind=${quoted(kind)};;\n`).join("");
  const seconds = [...secondWords()].filter(([, list]) => list.length > 0)
    .map(([first, list]) => `    ${first}) seconds=${quoted(list.join(" "))};;\n`).join("");
  return `# bash completion for cnibox
_cnibox_words() {
  local cur=$2
  case $1 in
    ${ASKED.join("|")}) COMPREPLY+=($(compgen -W "$(cnibox complete "$1" 2>/dev/null)" -- "$cur"));;
    file) COMPREPLY+=($(compgen -f -- "$cur"));;
    folder) COMPREPLY+=($(compgen -d -- "$cur"));;
    -|'') ;;
    *) COMPREPLY+=($(compgen -W "\${1//|/ }" -- "$cur"));;
  esac
}
_cnibox() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]} word=\${COMP_WORDS[1]}
  local seconds= flags= kind= at=2 index place=0 kinds=()
  COMPREPLY=()
  for ((index = 2; index < COMP_CWORD; index++)); do
    [[ \${COMP_WORDS[index]} == -- ]] || continue
    ((index == COMP_CWORD - 1)) && COMPREPLY=($(compgen -c -- "$cur")) || COMPREPLY=($(compgen -f -- "$cur"))
    return
  done
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W ${quoted([...secondWords().keys()].join(" "))} -- "$cur"))
    return
  fi
  case $word in
${seconds}  esac
  if [[ -n $seconds ]]; then
    if ((COMP_CWORD == 2)) && [[ $cur != -* ]]; then
      COMPREPLY=($(compgen -W "$seconds" -- "$cur"))
    elif [[ " $seconds " == *" \${COMP_WORDS[2]} "* ]] && ((COMP_CWORD > 2)); then
      word="$word \${COMP_WORDS[2]}"
      at=3
    fi
  fi
  case $word in
${flags}  esac
  case $word in
${kinds}  esac
  if [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    return
  fi
  case $prev in
${cases}  esac
  if [[ -n $kind ]]; then
    _cnibox_words "$kind" "$cur"
    return
  fi
  for ((index = at; index < COMP_CWORD; index++)); do
    [[ \${COMP_WORDS[index]} == -* ]] && continue
    kind=
    case \${COMP_WORDS[index-1]} in
${cases.replaceAll("    ", "      ")}    esac
    [[ -n $kind ]] || ((place++))
  done
  ((\${#kinds[@]} > 0)) || return
  ((place < \${#kinds[@]})) || place=$((\${#kinds[@]} - 1))
  _cnibox_words "\${kinds[place]}" "$cur"
}
complete -F _cnibox cnibox
`;
}

/** Text inside a zsh specification. */
const inSpec = (text: string): string => text.replace(/[\\:[\]]/g, "\\$&").replaceAll("'", `'\\''`);

function zshAction(kind: Kind | undefined, oneOf: readonly string[] | undefined): string {
  if (oneOf) return `(${oneOf.join(" ")})`;
  if (kind === "file") return "_files";
  if (kind === "folder") return "_files -/";
  return kind !== undefined && ASKED.includes(kind) ? `_cnibox_${kind}` : " ";
}

function zsh(): string {
  const asked = ASKED.map((kind) =>
    `_cnibox_${kind}() { local -a words; words=(\${(f)"$(cnibox complete ${kind} 2>/dev/null)"}); compadd -a words }\n`
  ).join("");
  const firsts = [...secondWords().keys()].map((first) => `    '${first}:${inSpec(summaryOf(first))}'\n`).join("");
  const cases = shown().map((command) => {
    const specs = flagsOf(command).map((flag) => {
      const names = spellings(flag);
      const many = flag.many ? "*" : `(${names.join(" ")})`;
      const argument = flag.value ? `:${inSpec(flag.value)}:${zshAction(flag.kind, flag.oneOf)}` : "";
      const about = `[${inSpec(flagAbout(flag))}]`;
      // Both `--flag VALUE` and `--flag=VALUE`.
      const long = argument === "" ? `--${flag.name}` : `--${flag.name}=`;
      return names.length > 1
        ? `'${many}'{${long},-${flag.short}}'${about}${argument}'`
        : `'${many}${long}${about}${argument}'`;
    });
    const positional = command.positional.map(({ name, kind, oneOf, many }, index) =>
      `'${many ? "*" : index + 1}:${inSpec(name)}:${zshAction(kind, oneOf)}'`
    );
    return `    ${quoted(command.name)}) _arguments -s -S ${[...specs, ...positional].join(" ")};;\n`;
  }).join("");
  const seconds = [...secondWords()].filter(([, list]) => list.length > 0);
  const second = seconds.map(([first, list]) =>
    `    ${first}) if ((CURRENT == 2)) && [[ $words[2] != -* ]]; then compadd ${list.join(" ")}; fi
      if [[ " ${
      list.join(" ")
    } " == *" $words[2] "* ]] && ((CURRENT > 2)); then word="$word $words[2]"; shift words; ((CURRENT--)); fi;;\n`
  ).join("");
  return `#compdef cnibox
${asked}_cnibox() {
  local -a commands
  commands=(
${firsts}  )
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  local end=\${words[(i)--]}
  if ((end < CURRENT)); then
    shift $end words
    ((CURRENT -= end))
    _normal
    return
  fi
  shift words
  ((CURRENT--))
  local word=$words[1]
  case $word in
${second}  esac
  case $word in
${cases}  esac
}
if [ "$funcstack[1]" = _cnibox ]; then _cnibox "$@"; else compdef _cnibox cnibox; fi
`;
}

/** A command, how many positional arguments are there before the word that is being written, and what follows `--`. */
const FISH_FUNCTIONS = `function __cnibox_in --argument-names wanted place end
  set -l words (commandline -opc)
  set -e words[1]
  contains -- -- $words; and return 1
  test (count $words) -gt 0; or return 1
  set -l command $words[1]
  set -e words[1]
  if test (count $words) -gt 0; and contains -- "$command $words[1]" $__cnibox_pairs
    set command "$command $words[1]"
    set -e words[1]
  end
  test "$command" = "$wanted"; or return 1
  test -n "$place"; or return 0
  set -l count 0
  set -l value no
  for word in $words
    if test $value = yes
      set value no
    else if string match -q -- '-*' $word
      contains -- $word $__cnibox_valued; and set value yes
    else
      set count (math $count + 1)
    end
  end
  test $value = no; or return 1
  test $count -eq $place; or test "$end" = on -a $count -gt $place
end
function __cnibox_rest
  set -l words (commandline -opc)
  set -l at (contains -i -- -- $words); or return
  set -e words[1..$at]
  set -l line (string join ' ' -- (string escape -- $words) (commandline -ct))
  complete -C "$line"
end`;

function fish(): string {
  const words = secondWords();
  const pairs = shown().map(({ name }) => name).filter((name) => name.includes(" "));
  const valued = new Set(shown().flatMap(flagsOf).filter(({ value }) => value !== undefined).flatMap(spellings));
  const lines = [
    "# fish completion for cnibox",
    `set -g __cnibox_pairs ${pairs.map(quoted).join(" ")}`,
    `set -g __cnibox_valued ${[...valued].join(" ")}`,
    FISH_FUNCTIONS,
    "complete -c cnibox -f",
  ];
  const on = (condition: string, rest: string) => lines.push(`complete -c cnibox -n ${quoted(condition)} ${rest}`);
  for (const first of words.keys()) {
    on("__fish_use_subcommand", `-a ${first} -d ${quoted(summaryOf(first))}`);
  }
  for (const name of pairs) {
    const [first = "", second = ""] = name.split(" ");
    on(`__cnibox_in ${first} 0`, `-a ${second} -d ${quoted(summaryOf(name))}`);
  }
  for (const command of shown()) {
    const inCommand = `__cnibox_in "${command.name}"`;
    for (const flag of flagsOf(command)) {
      const source = valuesFor(flag.kind, flag.oneOf);
      const value = flag.value === undefined
        ? ""
        : flag.kind === "file" || flag.kind === "folder"
        ? " -r -F"
        : ` -x${source}`;
      const short = flag.short ? ` -s ${flag.short}` : "";
      on(inCommand, `-l ${flag.name}${short}${value} -d ${quoted(flagAbout(flag))}`);
    }
    command.positional.forEach(({ kind, oneOf, many }, index) => {
      const source = kind === "file" || kind === "folder" ? " -F" : valuesFor(kind, oneOf);
      if (source !== "") on(`${inCommand} ${index}${many ? " on" : ""}`, source.trim());
    });
    if (command.rest) lines.push("complete -c cnibox -a '(__cnibox_rest)'");
  }
  return `${lines.join("\n")}\n`;
}

function valuesFor(kind: Kind | undefined, oneOf: readonly string[] | undefined): string {
  if (oneOf) return ` -a ${quoted(oneOf.join(" "))}`;
  return kind !== undefined && ASKED.includes(kind) ? ` -a '(cnibox complete ${kind} 2>/dev/null)'` : "";
}
