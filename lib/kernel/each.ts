/** Does the same for each of several things, so many at a time. */
export async function each<T>(all: readonly T[], atOnce: number, work: (one: T) => Promise<void>): Promise<void> {
  const left = all.values();
  await Promise.all(Array.from({ length: atOnce }, async () => {
    for (const one of left) await work(one);
  }));
}
