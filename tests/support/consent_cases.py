"""robots.txt files that refuse an image at /a.jpg, by the signal that does, and files that do not."""

from pipeline.consent.policy import Signal

CLOUDFLARE = """# As a condition of accessing this website, you agree to abide by the following
# content signals ...
# BEGIN Cloudflare Managed content

User-agent: *
Content-Signal: search=yes,ai-train=no
Allow: /

User-agent: Amazonbot
Disallow: /

User-agent: CCBot
Disallow: /

User-agent: GPTBot
Disallow: /
# END Cloudflare Managed Content
"""
POLICY_ONLY = "User-Agent: *\nContent-Signal: ai-train=yes, search=yes, ai-input=yes\nAllow: /\n"

REFUSED = {
    CLOUDFLARE: Signal.CONTENT_SIGNAL,
    CLOUDFLARE.replace("\n", "\r\n"): Signal.CONTENT_SIGNAL,
    CLOUDFLARE.replace("\n", "\r"): Signal.CONTENT_SIGNAL,
    CLOUDFLARE.replace("ai-train=no", "ai-train=yes"): Signal.ALSO_OBEY,
    "User-agent: CCBot\nUser-agent: GPTBot\nUser-agent: img2dataset\nDisallow: /": Signal.ALSO_OBEY,
    "User-agent: *\nAllow: /\n\nUser-agent: GPTBot\nDisallow: /": Signal.ALSO_OBEY,
    "User-agent: img2dataset/1.41\nDisallow: /": Signal.ALSO_OBEY,
    "user agent: ccbot\ndisalow: /": Signal.ALSO_OBEY,
    "User-agent: GPTBot*\nDisallow: *": Signal.ALSO_OBEY,
    "User-agent: Kangaroo Bot\nDisallow: /": Signal.ALSO_OBEY,
    "User-agent GPTBot\nDisallow /": Signal.ALSO_OBEY,
    "User-agent: GPTBot\nSitemap: http://e.com/s.xml\nUser-agent: Googlebot\nDisallow: /": Signal.ALSO_OBEY,
    "User-agent: GPTBot\nDisallow: /\nAllow: /b": Signal.ALSO_OBEY,
    "User-agent: GPTBot\nDisallow: /*.jpg$": Signal.ALSO_OBEY,
    "User-agent: GPTBot\nContent-Usage: train-ai=n\n\nUser-agent: *\nContent-Usage: train-ai=y": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: / train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage:/ train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: /\ttrain-ai=n # no": Signal.CONTENT_USAGE,
    "User-agent: *\n\tcontent-usage \t: \ttrain-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nCONTENT-USAGE: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent Usage: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent_Usage: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContentUsage: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\n\nContent-Usage: train-ai=n": Signal.CONTENT_USAGE,
    "Content-Usage: train-ai=n": Signal.CONTENT_USAGE,
    "Content-Usage: train-ai=n\nUser-agent: wit-pipeline\nAllow: /": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: / train-ai=y\nContent-Usage: / train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: train-ai=y\nContent-Usage: /*.jpg train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: train-ai=y\n\nUser-agent: *\nContent-Usage: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: wit-pipeline\nContent-Usage: train-ai=n\n\nUser-agent: *\nAllow: /": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: search=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Signal: ai-train=no": Signal.CONTENT_SIGNAL,
    "User-agent: *\nContent-Signals: ai-train=no": Signal.CONTENT_SIGNAL,
    "User-agent: *\nContent-signal: search=yes, ai_train=NO": Signal.CONTENT_SIGNAL,
    "User-agent: *\nContent-Signal: /a ai-train=no": Signal.CONTENT_SIGNAL,
    "Content-Signal: ai-train=no\n\nUser-agent: *\nAllow: /": Signal.CONTENT_SIGNAL,
    "User-agent: *\nTDM-Reservation: 1": Signal.TDM_RESERVATION,
    "tdm-reservation: 1": Signal.TDM_RESERVATION,
}

FREE = [
    "",
    "User-agent: *\nAllow: /",
    POLICY_ONLY,
    "User-agent: *\nContent-Signal: search=yes",
    "User-agent: *\nContent-Usage: train-ai=y, search=n",
    "User-agent: *\nContent-Usage: train-ai=no",
    "User-agent: *\nContent-Usage: Train-AI=n",
    "User-agent: *\nContent-Usage: /b/ train-ai=n",
    "User-agent: *\nContent-Usage: train-ai=n\nContent-Usage: /a train-ai=y",
    "# Content-Usage: train-ai=n\nUser-agent: *\nAllow: /",
    "User-agent: otherbot\nContent-Usage: train-ai=n",
    "User-agent: otherbot\nContent-Signal: ai-train=no\n\nUser-agent: *\nAllow: /",
    "User-agent: otherbot\nDisallow: /",
    "User-agent: Googlebot\nDisallow: /\n\nUser-agent: bingbot\nDisallow: /",
    "User-agent: GPTBot\nDisallow:",
    "User-agent: GPTBot\nDisallow: /private/",
    "User-agent: GPTBot\nDisallow: /\nAllow: /a",
    "User-agent: GPTBotanist\nDisallow: /",
    "User-agent: wit-pipeline\nAllow: /\n\nUser-agent: GPTBot\nDisallow: /",
    "User-agent: wit-pipeline\nContent-Usage: train-ai=y\n\nUser-agent: *\nContent-Usage: train-ai=n",
    "User-agent: *\nTDM-Reservation: 0",
    "User-agent: *\nDisallow: /content-usage/train-ai=n",
]
