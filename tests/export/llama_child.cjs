// Asks llama.cpp, as @fugood/llama.node brings it, what the JSON on standard input says; prints the answers as JSON.
// {model, mmproj, tokens, asks: [{prompt, picture}], texts: [...]} -> {answers: [...], ids: [[...], ...]}
const { loadModel } = require("@fugood/llama.node")
const { readFileSync } = require("fs")

async function main() {
  const given = JSON.parse(readFileSync(0, "utf8"))
  // One thread: several wait for each other in loops, which a busy machine does not forgive. Keys and values whole.
  const context = await loadModel({
    model: given.model,
    n_ctx: 1024,
    n_parallel: 1,
    n_gpu_layers: 0,
    n_threads: 1,
    flash_attn_type: "off",
    cache_type_k: "f32",
    cache_type_v: "f32",
  })
  if (given.mmproj) {
    const loaded = await context.initMultimodal({ path: given.mmproj, use_gpu: false })
    if (!loaded) throw new Error("llama.cpp does not take the mmproj")
  }
  const answers = []
  for (const ask of given.asks) {
    const settings = { prompt: ask.prompt, n_predict: given.tokens, temperature: 1, top_k: 1, penalty_repeat: 1.0 }
    if (ask.picture) settings.media_paths = [ask.picture]
    answers.push((await context.completion(settings)).text)
  }
  const ids = []
  for (const text of given.texts) ids.push(Array.from((await context.tokenize(text)).tokens))
  process.stdout.write("\n" + JSON.stringify({ answers, ids }) + "\n")
  await context.release()
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
