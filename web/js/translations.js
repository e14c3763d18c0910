// The texts of the heat map in the browser, in the languages of `locales/`.

import { app } from '../../../scripts/app.js'

const ENGLISH = {
  hint: 'Run the workflow to see the coefficients.',
  keys: 'Click, then move from cell to cell with the arrow keys.',
  size: '{layers} layers × {adapters} adapters',
  pager: 'mix {mix} of {mixes}',
  pagerOfSome: 'mix {mix} of the first {mixes} of {all}',
  use: 'adapter {adapter}: mean use {value}',
  difference: 'adapter {adapter}: mean difference {value}',
  cell: '{layer} · adapter {adapter}: {value} (no. {rank}) · {strip}',
  missing: '{layer} · has no adapter {adapter}',
  entropy: 'entropy',
  cosine: 'cosine',
  off: 'off in both'
}
const TABLES = {
  zh: {
    hint: '运行工作流即可查看系数。',
    keys: '点击后可用方向键逐格移动。',
    size: '{layers} 层 × {adapters} 个适配器',
    pager: '第 {mix} 组，共 {mixes} 组',
    pagerOfSome: '第 {mix} 组，共 {mixes} 组（全部 {all} 组中的前 {mixes} 组）',
    use: '适配器 {adapter}：平均使用量 {value}',
    difference: '适配器 {adapter}：平均差值 {value}',
    cell: '{layer} · 适配器 {adapter}：{value}（第 {rank}）· {strip}',
    missing: '{layer} · 没有适配器 {adapter}',
    entropy: '熵',
    cosine: '余弦',
    off: '两者均关闭'
  },
  ja: {
    hint: 'ワークフローを実行すると係数が表示されます。',
    keys: 'クリックすると、矢印キーでセルを移動できます。',
    size: '{layers} レイヤー × {adapters} アダプター',
    pager: '{mixes} 組中 {mix} 組目',
    pagerOfSome: '{mixes} 組中 {mix} 組目（全 {all} 組のうち最初の {mixes} 組）',
    use: 'アダプター {adapter}：平均使用量 {value}',
    difference: 'アダプター {adapter}：平均差 {value}',
    cell: '{layer} · アダプター {adapter}：{value}（{rank} 位）· {strip}',
    missing: '{layer} · アダプター {adapter} はありません',
    entropy: 'エントロピー',
    cosine: 'コサイン',
    off: 'どちらもオフ'
  },
  ko: {
    hint: '워크플로를 실행하면 계수가 표시됩니다.',
    keys: '클릭한 뒤 화살표 키로 칸을 옮길 수 있습니다.',
    size: '레이어 {layers}개 × 어댑터 {adapters}개',
    pager: '세트 {mix} / {mixes}',
    pagerOfSome: '세트 {mix} / {mixes} (전체 {all}세트 중 처음 {mixes}세트)',
    use: '어댑터 {adapter}: 평균 사용량 {value}',
    difference: '어댑터 {adapter}: 평균 차이 {value}',
    cell: '{layer} · 어댑터 {adapter}: {value} ({rank}위) · {strip}',
    missing: '{layer} · 어댑터 {adapter} 없음',
    entropy: '엔트로피',
    cosine: '코사인',
    off: '둘 다 꺼짐'
  }
}

function language() {
  const chosen = app.extensionManager?.setting?.get('Comfy.Locale') ?? app.ui?.settings?.getSettingValue('Comfy.Locale')
  return String(chosen ?? 'en').split('-')[0]
}

/** The text of a name in the user's language, or in English; `values` fill its braces. */
export function translate(name, values = {}) {
  const text = TABLES[language()]?.[name] ?? ENGLISH[name] ?? name
  return text.replace(/\{(\w+)\}/g, (_, key) => values[key])
}
