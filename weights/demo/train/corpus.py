"""A seeded, procedural corpus of short stories and small chat turns in English and Chinese.

    python corpus.py            prints a few samples
    build(count, seed)          yields `count` training documents
    held_out(count, seed)       yields documents whose hero and object never meet in training
    copying(count, seed)        yields short repeating exercises, for the start of training

A document is a list of messages in harmony form, already written out as text with
special tokens; every text is made by the grammar below, nothing is copied.

A story has slots (hero, friend, object, place, names, ...). The `analysis` message of a
story writes the slots down as a plan: those of the request and, for the rest, free choices.
The story then takes every slot from the plan.
"""

import random
import zlib

# --------------------------------------------------------------------------- words
# (English, Chinese, Chinese measure word)

HEROES = """fox 狐狸 只|rabbit 兔子 只|bear 小熊 只|owl 猫头鹰 只|mouse 老鼠 只|cat 小猫 只|dog 小狗 只|duck 鸭子 只|frog 青蛙 只|turtle 乌龟 只
squirrel 松鼠 只|hedgehog 刺猬 只|deer 小鹿 只|penguin 企鹅 只|elephant 大象 头|lion 狮子 头|tiger 老虎 只|monkey 猴子 只|panda 熊猫 只
sheep 小羊 只|pig 小猪 只|goat 山羊 只|horse 小马 匹|donkey 毛驴 头|cow 奶牛 头|whale 鲸鱼 头|dolphin 海豚 只|crab 螃蟹 只|snail 蜗牛 只
bee 蜜蜂 只|ant 蚂蚁 只|butterfly 蝴蝶 只|crow 乌鸦 只|parrot 鹦鹉 只|swan 天鹅 只|wolf 小狼 只|camel 骆驼 头|zebra 斑马 匹|giraffe 长颈鹿 只
kangaroo 袋鼠 只|bird 小鸟 只|dragon 小龙 条|dinosaur 恐龙 只|unicorn 独角兽 只|robot 机器人 个|fairy 仙女 位|princess 公主 位|prince 王子 位
knight 骑士 位|wizard 魔法师 位|pirate 海盗 位|sailor 水手 位|farmer 农夫 位|baker 面包师 位|girl 小女孩 个|boy 小男孩 个"""
OBJECTS = """lantern 灯笼 盏|kite 风筝 只|key 钥匙 把|drum 小鼓 面|bell 铃铛 个|map 地图 张|hat 帽子 顶|scarf 围巾 条|boat 小船 条|book 书 本
cup 杯子 个|button 纽扣 颗|ball 皮球 个|violin 小提琴 把|compass 指南针 个|umbrella 雨伞 把|basket 篮子 个|ring 戒指 枚|feather 羽毛 根
shell 贝壳 枚|letter 信 封|blanket 毯子 条|clock 时钟 座|spoon 勺子 把|mirror 镜子 面|flute 笛子 支|crown 王冠 顶|pencil 铅笔 支
telescope 望远镜 架|teapot 茶壶 把|wagon 小推车 辆|candle 蜡烛 支|coin 硬币 枚|bag 书包 个|sword 宝剑 把|rope 绳子 根|chair 椅子 把
lamp 台灯 盏|box 盒子 个|balloon 气球 个|bicycle 自行车 辆|camera 照相机 架|guitar 吉他 把|trumpet 小号 支|necklace 项链 条|pillow 枕头 个
stone 石头 块|doll 洋娃娃 个|puzzle 拼图 个|brush 刷子 把"""
# Words outside of the tables, used only where the request names them: so that copying is learned for any word.
RARE_HEROES = """hamster 仓鼠|otter 水獭|beaver 河狸|mole 鼹鼠|seal 海豹|shark 鲨鱼|octopus 章鱼|spider 蜘蛛|bat 蝙蝠|eagle 老鹰|goose 大鹅|chicken 小鸡
snake 小蛇|crocodile 鳄鱼|hippo 河马|rhino 犀牛|raccoon 浣熊|badger 獾|koala 考拉|leopard 豹子|llama 羊驼|peacock 孔雀|pigeon 鸽子|worm 虫子
ladybird 瓢虫|lizard 蜥蜴|mermaid 美人鱼|giant 巨人|ghost 幽灵|witch 女巫|teacher 老师|doctor 医生|painter 画家|hunter 猎人|king 国王|queen 女王
gardener 园丁|fisherman 渔夫|astronaut 宇航员|snowman 雪人|train 火车|cloud 云朵|tree 大树|alien 外星人|monster 怪物|grandmother 外婆"""
RARE_OBJECTS = """spaceship 飞船|rocket 火箭|pizza 比萨|computer 电脑|phone 手机|cake 蛋糕|apple 苹果|pie 馅饼|rose 玫瑰|flower 花朵|diamond 钻石|ladder 梯子
hammer 锤子|shoe 鞋子|glove 手套|coat 大衣|bottle 瓶子|jar 罐子|pot 小锅|piano 钢琴|harp 竖琴|whistle 哨子|wheel 轮子|window 窗户|carpet 地毯|sofa 沙发
bucket 水桶|needle 针|magnet 磁铁|watch 手表|sled 雪橇|tent 帐篷|robe 长袍|medal 奖牌|statue 雕像|pearl 珍珠|acorn 橡果|pumpkin 南瓜|carrot 胡萝卜
cookie 饼干|potion 药水|wand 魔杖|helmet 头盔|shield 盾牌|cloak 斗篷|pen 钢笔|notebook 笔记本|radio 收音机|train 火车|star 星星"""
PLACES = """in the forest:森林里|by the river:小河边|on the hill:山坡上|by the lake:湖边|in the village:村子里|on the beach:海滩上
in the garden:花园里|in the cave:山洞里|on the island:小岛上|in the castle:城堡里|on the farm:农场里|in the valley:山谷里"""
TRAITS = "brave 勇敢|shy 害羞|curious 好奇|kind 善良|clever 聪明|cheerful 快乐|gentle 温柔|quiet 安静|tiny 小小|young 年轻"
COLOURS = "red 红色|blue 蓝色|green 绿色|yellow 黄色|white 白色|silver 银色|golden 金色|purple 紫色"
SKILLS = "swim 游泳|sing 唱歌|dance 跳舞|paint 画画|cook 做饭|read 认字|skate 滑冰|climb 爬树|juggle 抛球|whistle 吹口哨|sew 缝衣服|fly 飞|write 写字|ski 滑雪"
SHE = "Mia Lily Ruby Nora Luna Poppy Hazel Bella Rosa Emma".split()
HE = "Finn Oscar Theo Max Leo Hugo Toby Otto Milo Felix".split()
NAMES_ZH = "小花 美美 朵朵 莉莉 甜甜 圆圆 乐乐 月月 豆豆 果果 阿宝 小明 阿福 皮皮 明明 亮亮 冬冬 点点 球球 安安".split()
GENDER = {"princess": True, "girl": True, "knight": False, "wizard": False, "boy": False}


def rows(text, mark=None):
    return [tuple(row.split(mark)) for row in text.replace("\n", "|").split("|") if row.strip()]


HEROES, OBJECTS, RARE_HEROES, RARE_OBJECTS, TRAITS, COLOURS, SKILLS = map(rows, (HEROES, OBJECTS, RARE_HEROES, RARE_OBJECTS, TRAITS, COLOURS, SKILLS))
PLACES = rows(PLACES, ":")
PLOTS = {"lost": "丢失", "found": "捡到", "gift": "礼物", "make": "制作", "storm": "大雨", "learn": "学习", "share": "分享", "search": "寻宝"}
NOT_MADE = ("feather", "shell", "stone", "coin")  # nobody makes these


def is_held_out(hero, thing):
    """One in twelve hero-object pairs is never used for training."""
    return zlib.crc32(f"{hero[0]}|{thing[0]}".encode()) % 12 == 0


def a(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


ONSETS = "b c d f g h j k l m n p r s t v w y z br ch cl dr fl gr pl qu sh sl st tr th".split()
CODAS = ["", "", "", "n", "l", "r", "x", "m", "nd", "ck", "st", "sh", "t"]


def made_up(rng):
    return "".join(rng.choice(ONSETS) + rng.choice("aeiou") + rng.choice(CODAS) for _ in range(rng.randint(2, 3)))


def made_up_zh(rng):
    """Two or three of the 3755 most common characters."""
    characters = (bytes([rng.randint(0xB0, 0xD6), rng.randint(0xA1, 0xFE)]) for _ in range(rng.randint(2, 3)))
    return b"".join(characters).decode("gb2312")


def rare(rng, table):
    """A word, mostly from the table, that no other rule uses."""
    return rng.choice(table)[:2] + ("个",) if rng.random() < 0.6 else (made_up(rng), made_up_zh(rng), "个")


# --------------------------------------------------------------------------- stories
# N, s, t: name, kind and trait of the hero; H, hs: name and kind of the friend; o, co: the object
# without and with its colour; p, q: places; k: skill. as, ao, ... have an article. Names follow a
# space in English, so that a name is the same token wherever it stands.

OPENING_EN = [
    "Once upon a time, a {t} {s} named {N} lived {p}.",
    "Once upon a time there was a {t} {s} called {N}, who lived {p}.",
    "Long ago, a {t} {s} named {N} lived {p}.",
    "There was once a {t} {s} whose name was {N}, and {his} home was {p}.",
]
LIFE_EN = [
    "Everyone there knew {N} and liked {him} very much.", "Every morning, {N} sang a little song.", "It was a small but happy home.",
    "In the evening, {he} liked to look at the moon.", "{He} was very {t} indeed.", "The days were long and warm there.",
]
CLOSING_EN = [
    "From that day on, {N} and {H} were the best of friends.",
    "That night, {N} slept well and dreamed of the {o}.",
    "Since then, {N} and {H} have met {p} every day.",
    "And {N} never forgot how good it is to have a friend like {H}.",
    "\"Thank you, {H},\" said {N}, and they walked home under the stars.",
]
FRIEND_EN = [
    "Then {he} met {ahs} named {H}.",
    "Just then, {ahs} called {H} came along.",
    "Soon {ahs} named {H} stopped to help.",
]
STORIES_EN = {
    "lost": [
        ["{He} had a {co} that {he} loved very much.", "{His} favourite thing was a {co}.", "Every day {he} played with {his} {co}.",
         "On {his} last birthday, {he} had got a {co}."],
        ["One windy day, the {o} was gone.", "But one day {N} could not find the {o}.", "One evening, {he} saw that the {o} was missing."],
        ["\"Where is my {o}?\" cried {N}.", "{He} looked under the bed and behind the door, but there was no {o}.",
         "{He} felt sad and sat down to think.", "{He} asked everyone, but nobody had seen the {o}."],
        "friend",
        ["\"I lost my {o},\" said {N}. \"Will you help me?\"", "\"Why are you sad?\" asked {H}. \"I lost my {o},\" said {N}."],
        ["\"Let us look {q},\" said {H}.", "\"I saw something shine {q},\" said {H}.", "So {H} took {him} by the hand, and they looked {q}."],
        ["There, under a pile of leaves, was the {co}!", "They looked and looked, and at last they found the {o}.",
         "And there it was: the {co}, safe and dry."],
        ["{N} was so happy that {he} danced.", "Now {N} laughed and held the {o} tight."],
    ],
    "found": [
        ["One day, {he} found a {co} {q}.", "While walking {q}, {he} saw a {co} on the ground.",
         "One rainy day, {he} came across a {co} {q}."],
        ["\"What a lovely {o}!\" said {N}.", "The {o} was shining in the sun.", "Never had {he} seen such a beautiful {o}."],
        ["But {N} knew that the {o} belonged to someone else.", "\"Someone must miss this {o},\" thought {N}."],
        ["{He} went from door to door with the {o}.", "{He} waited all day, but nobody came.", "{He} wrote a note about the {o} and put it on a tree."],
        ["Then {ahs} named {H} came along.", "At last, {ahs} called {H} stopped and looked."],
        ["\"That is my {o}!\" said {H}. \"I lost it last week.\"", "\"Have you seen my {o}?\" asked {H}."],
        ["\"Here it is,\" said {N}, and gave the {o} back.", "At once, {N} gave the {o} back to {H}."],
        ["\"You are very honest,\" said {H}.", "To say thank you, {H} shared a warm pie with {N}."],
    ],
    "gift": [
        ["{His} best friend was {ahs} named {H}.", "{He} had a good friend, {ahs} called {H}."],
        ["Tomorrow was the birthday of {H}.", "One day, {H} was ill and had to stay in bed."],
        ["So {N} wanted to bring {H} a {co}.", "For days, {N} looked for a present and chose a {co}.", "\"I will give {H} a {co},\" said {N}."],
        ["But {H} lived far away {q}, and the wind was strong.", "But {H} lived {q}, and the path was long and full of mud."],
        ["{He} held the {o} tight and took one step after another.", "{He} kept the {o} safe under {his} coat and did not stop."],
        ["At last {he} knocked on the door, and {H} opened it.", "When {he} arrived, {H} could hardly believe it."],
        ["\"Is this {o} for me?\" asked {H}.", "When {H} saw the {o}, the whole room seemed to shine.", "How {H} loved the {co}!"],
        ["They drank hot tea and talked until late.", "They drank some juice and told stories.", "All evening, they sang and laughed."],
    ],
    "make": [
        ["One day, {N} wanted to make a {co}.", "{He} had a dream: {he} wanted to make a {co}.",
         "In the market, {he} had seen a {co}, and {he} wanted to make one too."],
        ["{He} worked all morning, but the {o} fell apart.", "The first {o} was too small, and the second one broke.",
         "Three times {he} tried, but it was too hard."],
        ["\"I will never make {ao},\" said {N} sadly.", "Soon {N} almost gave up."],
        "friend",
        ["\"Do not give up,\" said {H}. \"We can do it together.\"", "\"I can show you how,\" said {H}.", "So {H} looked at the {o} and said, \"Let me help you.\""],
        ["They found everything they needed {q}.", "They looked for wood and string {q}.", "To get some tools, they went to meet a friend {q}."],
        ["They worked until the sun went down, and then the {o} was ready.", "Step by step, they made the {o}.", "At last, {N} held up the finished {o}."],
        ["Everyone came to see the {co}.", "How proud {N} was of the {co}!"],
    ],
    "storm": [
        ["{He} always carried a {co}.", "{His} old aunt had given {him} a {co}.", "{He} never left home without {his} {co}."],
        ["One night, a great storm came.", "One day, dark clouds filled the sky.", "That evening, thunder rolled over the land."],
        ["Through the rain, {N} heard someone calling {q}.", "Then {N} heard a small voice {q}.", "\"Help!\" cried someone {q}."],
        ["{He} was afraid, but {he} took the {o} and went out.", "With the {o} in hand, {he} ran into the rain."],
        ["There sat {ahs} named {H}, lost and cold.", "It was {ahs} called {H}, who could not find the way home."],
        ["\"Do not be afraid,\" said {N}. \"I will take you home.\"", "\"Come with me,\" said {N}. \"My house is warm.\""],
        ["With the {o}, they found the way.", "So {N} gave the {o} to {H}, and soon they were not afraid any more."],
        ["They sat by the fire until the storm was over.", "In the morning, the sun came out and the sky was blue."],
    ],
    "learn": [
        ["More than anything, {N} wanted to {k}.", "But {N} was sad, because {he} could not {k}.", "All the others could {k}, but {N} could not."],
        ["The first time {he} tried, {he} fell down.", "{He} tried it {q}, but it did not work.", "The others laughed, and {N} ran away."],
        "friend",
        ["\"Everyone can learn to {k},\" said {H}.", "\"I was afraid too when I learned to {k},\" said {H}.", "It was {H} who could {k} better than anyone."],
        ["Then {H} gave {him} a {co} for luck.", "\"Take this {co},\" said {H}. \"It will make you brave.\""],
        ["With the {o}, {N} tried again {q}.", "Every day {N} looked at the {o} and tried again.", "They practised {q}, and the {o} was always there."],
        ["One morning, {N} could {k}!", "After seven days, {N} could {k} as well as {H}."],
        ["\"Look at me!\" cried {N}, and {H} clapped.", "Now {N} keeps the {o} next to the bed."],
    ],
    "share": [
        ["One day, {he} got a {co}.", "{His} favourite toy was a {co}.", "{He} was very proud of {his} new {co}."],
        ["\"This {o} is mine alone,\" said {N}.", "{He} did not want anyone to touch the {o}."],
        ["Then {ahs} named {H} came to visit.", "One afternoon, {ahs} called {H} came by."],
        ["\"May I play with the {o}?\" asked {H}. \"No!\" said {N}.", "When {H} asked for the {o}, {N} said no."],
        ["So {H} went away and sat alone {q}.", "Sadly, {H} left and went to play {q}."],
        ["But playing alone with the {o} was no fun.", "Soon {N} felt lonely, even with the {o}."],
        ["\"I am sorry,\" said {N}. \"The {o} is for both of us.\"", "So {N} went to {H} and said, \"Let us share the {o}.\""],
        ["They played with the {co} until the sun went down.", "With a friend, the {o} was twice as much fun."],
    ],
    "search": [
        ["{He} had heard of a {co} that was hidden {q}.", "An old song told of a {co} hidden {q}."],
        ["\"I want to find the {o},\" said {N}, and packed some bread.", "Every night, {he} dreamed of the {o}.", "Nobody had ever found the {o}."],
        "friend",
        ["\"Where are you going?\" asked {H}. \"To find the {o},\" said {N}.", "\"I am looking for the {o},\" said {N}. \"I will come with you,\" said {H}."],
        ["They walked for three days and three nights.", "The way was long, but they sang all the time."],
        ["At last, they stood {q}, and it was very dark.", "When they came to the place {q}, it began to rain."],
        ["Behind a big rock, {N} saw the {o}!", "There was the {co}, bright as the moon!", "\"Look, the {o}!\" cried {H}."],
        ["They brought the {o} home, and everyone danced.", "Now the {co} stands in the middle of the village."],
    ],
}

OPENING_ZH = [
    "从前，{p}住着一{m}{t}的{s}，名叫{N}。",
    "很久以前，{p}有一{m}{t}的{s}，名字叫{N}。",
    "从前有一{m}{t}的{s}，名叫{N}，家在{p}。",
]
LIFE_ZH = ["大家都很喜欢{N}。", "每天早上，{N}都要唱一首歌。", "那里的日子又长又暖和。", "晚上，{N}喜欢看月亮。", "{N}真的很{t}。"]
CLOSING_ZH = [
    "从那天起，{N}和{H}成了最好的朋友。",
    "那天晚上，{N}睡得很香，梦见了{o}。",
    "后来，{N}和{H}每天都在{p}见面。",
    "“谢谢你，{H}！”{N}说。他们在星光下一起走回家。",
]
FRIEND_ZH = ["这时，一{hm}名叫{H}的{hs}走了过来。", "路上，{N}遇到了一{hm}{hs}，名叫{H}。"]
STORIES_ZH = {
    "lost": [
        ["{N}有一{om}{c}的{o}，非常喜欢。", "{N}最喜欢的东西是一{om}{c}的{o}。", "{N}每天都玩一{om}{c}的{o}。"],
        ["有一天，{o}不见了。", "可是有一天，{N}找不到{o}了。", "一天晚上，{N}发现{o}丢了。"],
        ["“我的{o}在哪里？”{N}难过地说。", "{N}找来找去，怎么也找不到{o}。", "{N}问了很多人，谁也没有看见{o}。"],
        "friend",
        ["“我的{o}丢了，你能帮我吗？”{N}问。", "“你为什么不高兴？”{H}问。“我的{o}丢了。”{N}说。"],
        ["“我们去{q}找一找吧。”{H}说。", "{H}说：“我在{q}看见过一个闪光的东西。”"],
        ["原来，{o}就在树叶下面！", "他们找啊找，终于看见了{c}的{o}。"],
        ["{N}高兴得跳了起来。", "{N}笑了，紧紧抱着{o}。", "{N}抱住{H}，说了声谢谢。"],
    ],
    "found": [
        ["有一天，{N}在{q}捡到了一{om}{c}的{o}。", "{N}在{q}散步的时候，看见地上有一{om}{c}的{o}。"],
        ["“多漂亮的{o}啊！”{N}说。", "{o}在阳光下闪闪发光。", "{N}从来没有见过这么美的{o}。"],
        ["可是{N}知道，{o}是别人的。", "“丢了{o}的人一定很着急。”{N}想。", "{N}很想留下{o}，可是觉得这样不对。"],
        ["{N}一家一家地去问。", "{N}等了一整天。"],
        ["这时，一{hm}名叫{H}的{hs}走了过来。", "终于，来了一{hm}{hs}，名叫{H}。"],
        ["“这是我的{o}！”{H}说。", "“你看见我的{o}了吗？”{H}问。"],
        ["{N}马上把{o}还给了{H}。", "“给你。”{N}说着，把{o}交给了{H}。"],
        ["“你真诚实。”{H}说。", "{H}请{N}吃了一块香香的点心。"],
    ],
    "gift": [
        ["{N}有一个好朋友，是一{hm}{hs}，名叫{H}。", "{N}最好的朋友是一{hm}{hs}，名叫{H}。"],
        ["明天是{H}的生日。", "有一天，{H}生病了，只能躺在床上。"],
        ["{N}想送给{H}一{om}{c}的{o}。", "“我要送给{H}一{om}{c}的{o}。”{N}说。"],
        ["可是{H}住在{q}，路很远，风很大。", "可是去{q}的路很远，到处都是泥。"],
        ["{N}紧紧抱着{o}，一步一步往前走。", "“我可以的！”{N}拿着{o}，没有停下来。", "{N}把{o}放在怀里，走了一天。"],
        ["终于，{N}敲响了门，{H}把门打开了。"],
        ["“这{o}是给我的吗？”{H}问。", "{H}非常喜欢{c}的{o}。"],
        ["他们一起喝热茶，聊到很晚。", "他们一起喝果汁，讲故事。"],
    ],
    "make": [
        ["有一天，{N}想做一{om}{c}的{o}。", "{N}有一个梦想：做一{om}{c}的{o}。"],
        ["{N}做了一个上午，可是{o}坏了。", "第一次做的{o}太小，第二次又断了。", "{N}试了三次，都没有成功。"],
        ["“我做不好{o}。”{N}叹了一口气。", "{N}差一点就放弃了。"],
        "friend",
        ["“别放弃，我们一起做。”{H}说。", "“我来教你。”{H}说。", "{H}看了看{o}，说：“让我帮你吧。”"],
        ["他们去{q}找来了木头和布。", "他们在{q}找到了需要的东西。"],
        ["太阳下山的时候，{o}终于做好了。", "一步一步，{o}做好了。", "终于，{N}举起了做好的{o}。"],
        ["大家都来看{c}的{o}。", "{N}为{c}的{o}感到骄傲。"],
    ],
    "storm": [
        ["{N}总是带着一{om}{c}的{o}。", "姑姑送给{N}一{om}{c}的{o}。", "{N}出门的时候，总要带上{c}的{o}。"],
        ["一天晚上，下起了大雨。", "有一天，天上来了很多黑云，打起了雷。", "那天晚上，风很大，雨也很大。"],
        ["{N}听见{q}有人在喊救命。", "雨里，{N}听见{q}传来一个细细的声音。"],
        ["{N}有点害怕，可是拿起{o}跑了出去。", "{N}带上{o}，走进了大雨里。"],
        ["原来是一{hm}名叫{H}的{hs}，迷路了。", "一{hm}{hs}坐在那里，名叫{H}，找不到回家的路。"],
        ["“别怕，我带你回家。”{N}说。", "“跟我来，我家里很暖和。”{N}说。"],
        ["有了{o}，他们找到了路。", "{N}把{o}给了{H}，{H}不再害怕了。"],
        ["他们坐在火边，一直等到雨停。", "第二天早上，太阳出来了，天空很蓝。"],
    ],
    "learn": [
        ["{N}很想学{k}。", "{N}有点难过，因为不会{k}。", "大家都会{k}，只有{N}不会。"],
        ["{N}在{q}试了一次，可是没有成功。", "第一次学{k}的时候，{N}摔倒了。", "大家都笑了，{N}跑开了。"],
        "friend",
        ["“我学{k}的时候也很害怕。”{H}说。", "“谁都可以学会{k}。”{H}说。", "{H}很会{k}。"],
        ["{H}送给{N}一{om}{c}的{o}，祝{N}好运。", "“拿着这{om}{c}的{o}，你会更勇敢。”{H}说。"],
        ["{N}带着{o}，每天在{q}练习。", "{N}每天看着{o}，试了又试。"],
        ["终于，{N}学会了{k}！", "七天以后，{N}会{k}了。"],
        ["“快看我！”{N}大声说，{H}拍起手来。", "{N}把{o}放在床边，非常高兴。"],
    ],
    "share": [
        ["有一天，{N}得到了一{om}{c}的{o}。", "{N}最喜欢玩一{om}{c}的{o}。"],
        ["“{o}是我一个人的。”{N}说。", "{N}不让别人碰{o}。"],
        ["这时，一{hm}名叫{H}的{hs}来做客。", "一天下午，来了一{hm}{hs}，名叫{H}。"],
        ["“我可以玩{o}吗？”{H}问。“不行！”{N}说。", "{H}也想玩{o}，可是{N}说不行。"],
        ["{H}难过地走了，一个人坐在{q}。", "{H}只好去{q}玩。"],
        ["可是一个人玩{o}没有意思。", "不久，{N}觉得很孤单，有{o}也不高兴。"],
        ["“对不起，{o}是我们两个人的。”{N}说。", "{N}找到{H}，说：“我们一起玩{o}吧。”"],
        ["他们一起玩{c}的{o}，一直玩到太阳下山。", "有了朋友，{o}更好玩了。"],
    ],
    "search": [
        ["听说{q}藏着一{om}{c}的{o}。", "有一首老歌说，{q}藏着一{om}{c}的{o}。"],
        ["“我要去找{o}。”{N}说。", "{N}每天晚上都梦见{o}。", "从来没有人找到过{o}。"],
        "friend",
        ["“你要去哪里？”{H}问。“我去找{o}。”{N}说。", "“我在找{o}。”{N}说。“我和你一起去。”{H}说。"],
        ["他们走了三天三夜。", "路很长，可是他们一路唱着歌。"],
        ["终于，他们来到{q}，那里很黑。", "他们来到{q}的时候，下起了雨。"],
        ["{N}在一块大石板后面看见了{o}！", "{c}的{o}就在那里，像月亮一样亮！", "“快看，{o}！”{H}大声说。"],
        ["他们把{o}带回家，大家都跳起舞来。", "现在，{c}的{o}放在村子中间。"],
    ],
}

DEEDS_EN = dict(lost="who lost {ao}", found="who found {ao}", gift="who gave away {ao}", make="who made {ao}",
                storm="in a storm", learn="who learned to {k}", share="who shared {ao}", search="who searched for {ao}")
DEEDS_ZH = dict(lost="丢了{o}", found="捡到{o}", gift="送{o}", make="做{o}", storm="遇到大雨", learn="学{k}", share="分享{o}", search="寻找{o}")
ASK_EN = ["Tell me a story about {}.", "Tell me a story about {}.", "tell me a story about {}", "Write a short story about {}.",
          "Write a story about {}.", "Can you tell me a story about {}?", "Please tell me a story about {}.",
          "I want to hear a story about {}.", "A story about {}, please.", "story about {}"]
ASK_ZH = ["讲一个关于{}的故事。", "讲一个关于{}的故事。", "讲一个关于{}的故事", "给我讲一个{}的故事。", "请写一个关于{}的小故事。", "写一个关于{}的故事。",
          "我想听{}的故事。", "能讲一个关于{}的故事吗？", "讲个{}的故事"]
ASK_ANY_EN = ["Tell me a story.", "tell me a story", "Please tell me a short story.", "I want a story!", "Can you tell me a story?",
              "Write a story.", "Tell me another story."]
ASK_ANY_ZH = ["给我讲个故事。", "讲个故事吧。", "请讲一个故事。", "我想听故事", "说个故事", "再讲一个故事。"]


class Story:
    """One choice of hero, friend, object, places and plot, told in either language."""

    def __init__(self, rng, held=False, plain=False):
        while True:
            self.hero, self.thing = rng.choice(HEROES), rng.choice(OBJECTS)
            if is_held_out(self.hero, self.thing) == held:
                break
        self.kind = rng.choice("hero hero trait deed deed deed and and and place name friend object full any".split())
        self.friend = rng.choice([h for h in HEROES if h is not self.hero])
        # Heroes have the first half of the names and places, friends and journeys the second, unless the request says otherwise.
        named, placed = self.kind in ("name", "full"), self.kind == "place"
        self.place = rng.choice(PLACES if placed else PLACES[::2])
        self.second = rng.choice([p for p in PLACES[1::2] if p is not self.place])
        self.trait, self.colour, self.skill = rng.choice(TRAITS), rng.choice(COLOURS), rng.choice(SKILLS)
        self.plot = rng.choice([plot for plot in PLOTS if plot != "make" or self.thing[0] not in NOT_MADE])
        self.she = GENDER.get(self.hero[0], rng.random() < 0.5)
        friend_she = GENDER.get(self.friend[0], rng.random() < 0.5)

        def pick(names, friends):
            name = rng.choice(names if named else names[::2])
            return name, rng.choice([n for n in friends[1::2] if n != name])

        self.name, self.friend_name = pick(SHE if self.she else HE, SHE if friend_she else HE)
        self.name_zh, self.friend_name_zh = pick(NAMES_ZH, NAMES_ZH)
        # Now and then the request names a word that is in no table.
        if held or plain:
            return
        if self.kind not in ("object", "any") and rng.random() < 0.05:
            self.hero = rare(rng, RARE_HEROES)
        if (self.kind in ("object", "and") or self.kind in ("deed", "full") and self.plot not in ("storm", "learn")) and rng.random() < 0.05:
            self.thing = rare(rng, RARE_OBJECTS)
        if self.kind in ("name", "full") and rng.random() < 0.15:
            self.name, self.name_zh = made_up(rng).capitalize(), made_up_zh(rng)

    def words(self, zh):
        if zh:
            return dict(N=self.name_zh, s=self.hero[1], m=self.hero[2], t=self.trait[1], H=self.friend_name_zh,
                        hs=self.friend[1], hm=self.friend[2], o=self.thing[1], om=self.thing[2], c=self.colour[1],
                        p=self.place[1], q=self.second[1], k=self.skill[1], plot=PLOTS[self.plot])
        he, him, his = ("she", "her", "her") if self.she else ("he", "him", "his")
        return dict(N=self.name, s=self.hero[0], t=self.trait[0], H=self.friend_name, ahs=a(self.friend[0]), o=self.thing[0],
                    ao=a(self.thing[0]), co=f"{self.colour[0]} {self.thing[0]}", p=self.place[0], q=self.second[0],
                    k=self.skill[0], he=he, him=him, his=his, He=he.capitalize(), His=his.capitalize(), plot=self.plot,
                    **{"as": a(self.hero[0])})

    def tell(self, rng, zh):
        openings, life, stories, friends, closings = (
            (OPENING_ZH, LIFE_ZH, STORIES_ZH, FRIEND_ZH, CLOSING_ZH) if zh else (OPENING_EN, LIFE_EN, STORIES_EN, FRIEND_EN, CLOSING_EN))
        steps = [openings] + [life] * (rng.random() < 0.5)
        steps += [friends if step == "friend" else step for step in stories[self.plot]] + [closings]
        return ("" if zh else " ").join(map(rng.choice, steps)).format(**self.words(zh))

    def ask(self, rng, zh):
        """A request that names some of the slots."""
        kind = self.kind
        if kind == "any":
            return rng.choice(ASK_ANY_ZH if zh else ASK_ANY_EN)
        if zh:
            topic = rng.choice({
                "hero": ["{s}", "一{m}{s}"], "trait": ["{t}的{s}", "一{m}{t}的{s}"], "deed": ["{s}" + DEEDS_ZH[self.plot]],
                "and": ["{s}和{o}", "一{m}{s}和一{om}{o}", "{t}的{s}和{o}", "{s}和{c}的{o}"], "place": ["{p}的{s}"], "name": ["{s}{N}", "名叫{N}的{s}"],
                "friend": ["{s}和{hs}"], "object": ["{o}", "一{om}{o}", "一{om}{c}的{o}"], "full": ["名叫{N}的{s}" + DEEDS_ZH[self.plot]]}[kind])
            return rng.choice(ASK_ZH).format(topic.format(**self.words(zh)))
        hero = rng.choice(["{as}", "{as}", "a {t} {s}"])
        deed = DEEDS_EN[self.plot]
        topic = rng.choice({
            "hero": ["{as}"], "trait": ["a {t} {s}"], "deed": [hero + " " + deed], "and": [hero + " and {ao}", hero + " and {ao}", hero + " and a {co}"],
            "place": [hero + " {p}"], "name": [hero + " named {N}", hero + " called {N}"], "friend": [hero + " and {ahs}"],
            "object": ["{ao}", "a {co}"], "full": [hero + " named {N} " + deed]}[kind])
        return rng.choice(ASK_EN).format(topic.format(**self.words(zh)))

    def plan(self, rng, zh):
        if zh:
            text = "主角：一{m}{t}的{s}，{N}。物品：一{om}{c}的{o}。朋友：一{hm}{hs}，{H}。地点：{p}、{q}。情节：{plot}。"
        else:
            text = "Hero: a {t} {s}, {N}. Object: a {co}. Friend: {ahs}, {H}. Places: {p}, {q}. Plot: {plot}."
        if self.plot == "learn":
            text += "学会：{k}。" if zh else " Skill: {k}."
        return text.format(**self.words(zh))

    def question(self, rng, zh):
        """A question about the story just told: (user, analysis, final)."""
        if zh:
            pairs = [("主角叫什么名字？", "主角叫{N}。"), ("主角是谁？", "主角是{s}{N}。"), ("故事里有什么东西？", "故事里有一{om}{c}的{o}。"),
                     ("朋友叫什么名字？", "朋友叫{H}。"), ("{N}住在哪里？", "{N}住在{p}。")]
        else:
            pairs = [("What was the name of the {s}?", "The {s} was called {N}."), ("Who was the hero?", "The hero was {N}, a {t} {s}."),
                     ("What was in the story?", "There was a {co} in the story."), ("What was the name of the friend?", "The friend was called {H}."),
                     ("Where did {N} live?", "The home of {N} was {p}.")]
        user, final = rng.choice(pairs)
        user, final = user.format(**self.words(zh)), final.format(**self.words(zh))
        return user, None, final


# --------------------------------------------------------------------------- small turns

OPPOSITES = """big small 大 小|hot cold 热 冷|up down 上 下|fast slow 快 慢|day night 白天 黑夜|happy sad 高兴 难过|open closed 开 关|light dark 亮 暗
long short 长 短|wet dry 湿 干|full empty 满 空|soft hard 软 硬|loud quiet 吵 静|left right 左 右|early late 早 晚|near far 近 远|clean dirty 干净 脏
good bad 好 坏|strong weak 强 弱|first last 第一 最后"""
THINGS = """snow white 雪 白色|grass green 草 绿色|the_sky blue 天空 蓝色|the_sea blue 大海 蓝色|the_sun yellow 太阳 黄色|a_banana yellow 香蕉 黄色
a_lemon yellow 柠檬 黄色|a_tomato red 西红柿 红色|a_strawberry red 草莓 红色|a_carrot orange 胡萝卜 橙色|coal black 煤 黑色|milk white 牛奶 白色
a_cloud white 云 白色|a_frog green 青蛙 绿色|a_leaf green 树叶 绿色|chocolate brown 巧克力 棕色|blood red 血 红色|the_night black 黑夜 黑色"""
SOUNDS = """cat meow 小猫 喵|dog woof 小狗 汪|cow moo 奶牛 哞|duck quack 鸭子 嘎|sheep baa 小羊 咩|pig oink 小猪 哼|frog croak 青蛙 呱|bee buzz 蜜蜂 嗡
owl hoot 猫头鹰 咕|lion roar 狮子 吼"""
OPPOSITES, THINGS, SOUNDS = map(rows, (OPPOSITES, THINGS, SOUNDS))
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
DAYS_ZH = "星期一 星期二 星期三 星期四 星期五 星期六 星期日".split()
TOPICS = """the capital of France|the weather today|quantum physics|the stock market|the history of Rome|a good recipe|football|computers
the meaning of life|a Python function|a poem about love|the president|black holes|democracy|my homework|the news|an email to my boss|music
the speed of light|machine learning|chemistry|taxes|a new phone|the distance to the moon|a film|philosophy|the best restaurant|medicine"""
TOPICS_ZH = "法国的首都|今天的天气|量子物理|股票|罗马的历史|菜谱|足球|电脑|人生的意义|代码|新闻|黑洞|光速|机器学习|化学|手机|电影|哲学|音乐|医学|邮件|月亮"
TOPICS, TOPICS_ZH = TOPICS.replace("\n", "|").split("|"), TOPICS_ZH.split("|")
ME = "I am Vernier's demo model, a tiny language model. I tell short stories in English and Chinese."
ME_ZH = "我是 Vernier 的演示模型，一个很小的语言模型。我会用中文和英文讲小故事。"
HELP = "I can tell short stories about animals and things, name colours, say what animals say, and add small numbers."
HELP_ZH = "我会讲动物和物品的小故事，会说颜色和动物的叫声，还会做小的加法。"
DUNNO = "I am only a tiny demo model, so I do not know that. Ask me for a story about a fox and a lantern!"
DUNNO_ZH = "我只是一个很小的演示模型，不知道这个。你可以让我讲一个狐狸和灯笼的故事！"
SMALL = ("sum sum sum count count count opposite opposite opposite opposite opposite colour colour colour colour repeat repeat "
         "greet who help sound sound day day day fallback fallback thanks").split()


def repeated(rng, zh):
    """Words to repeat."""
    table = rng.choice([HEROES, OBJECTS, COLOURS, TRAITS, SKILLS, HEROES + OBJECTS + COLOURS])
    words = [rng.choice(table)[zh] for _ in range(rng.randint(1, 4))]
    for i in range(len(words)):
        if rng.random() < 0.05:
            words[i] = rng.choice([rng.choice(NAMES_ZH if zh else SHE + HE), rare(rng, RARE_HEROES + RARE_OBJECTS)[zh], rng.choice(TOPICS_ZH if zh else TOPICS)])
    return ("、" if zh else " ").join(words)


def small_en(rng, kind=None):
    """(user, analysis or None, final)"""
    pick = rng.choice
    kind = kind or pick(SMALL)
    if kind == "sum":
        x, y = rng.randint(0, 5), rng.randint(0, 5)
        ask = pick([f"What is {x} + {y}?", f"What is {x} plus {y}?", f"{x} + {y} = ?", f"{x} + {y}", f"How much is {x} plus {y}?", f"what is {x}+{y}?"])
        return ask, None, f"{x} + {y} = {x + y}."
    if kind == "count":
        x = rng.choice([1, rng.randint(0, 12)])
        y = x + rng.randint(2, 8)
        ask = pick([f"Count from {x} to {y}.", f"count from {x} to {y}", f"Can you count from {x} to {y}?", f"Please count from {x} to {y}."])
        if x == 1 and rng.random() < 0.5:
            ask = pick([f"Count to {y}.", f"Please count to {y}.", f"count to {y}"])
        return ask, None, ", ".join(map(str, range(x, y + 1))) + "."
    if kind == "opposite":
        x, y = rng.sample(pick(OPPOSITES)[:2], 2)
        return pick([f"What is the opposite of {x}?", f"opposite of {x}", f"Tell me the opposite of {x}."]), None, f"The opposite of {x} is {y}."
    if kind == "colour":
        x, y = pick(THINGS)[:2]
        x = x.replace("_", " ")
        return pick([f"What colour is {x}?", f"What color is {x}?", f"Which colour is {x}?", f"what colour is {x}"]), None, f"The colour is {y}."
    if kind == "repeat":
        text = repeated(rng, False)
        return pick([f"Repeat after me: {text}", f"Say: {text}", f"repeat after me: {text}", f"Please repeat: {text}"]), None, "You said: " + text
    if kind == "greet":
        hi = pick(["Hello", "Hi", "Hey", "Good morning", "Good evening", "hello", "hi"])
        if rng.random() < 0.3:
            name = pick(SHE + HE + [made_up(rng).capitalize()] * 10)
            return f"{hi}, {pick(['I am', 'my name is'])} {name}{pick('.!')}", None, f"Hello, {name}! Would you like to hear a story?"
        return hi + pick(["", "!", ".", ", how are you?"]), None, "Hello! Would you like to hear a story?"
    if kind == "who":
        return pick(["Who are you?", "who are you", "What are you?", "What is your name?", "Tell me about yourself.", "Are you ChatGPT?",
                     "Which model are you?", "Who made you?", "Introduce yourself."]), None, ME
    if kind == "help":
        return pick(["What can you do?", "Help", "help me", "What do you know?", "How can you help me?", "what can you do"]), None, HELP
    if kind == "sound":
        x, y = pick(SOUNDS)[:2]
        return pick([f"What does {a(x)} say?", f"What sound does {a(x)} make?"]), None, f"{a(x).capitalize()} says {y}."
    if kind == "day":
        i, (where, step) = rng.randrange(7), pick([("after", 1), ("before", -1)])
        return pick([f"What day comes {where} {DAYS[i]}?", f"Which day is {where} {DAYS[i]}?"]), None, f"The day {where} {DAYS[i]} is {DAYS[(i + step) % 7]}."
    if kind == "thanks":
        return pick([("Thank you!", None, "You are welcome!"), ("Thanks", None, "You are welcome!"), ("Goodbye!", None, "Goodbye! See you soon."),
                     ("Bye", None, "Goodbye! See you soon."), ("Good night.", None, "Good night! Sleep well.")])
    ask = pick(["What is {}?", "Tell me about {}.", "Explain {}.", "Write {}.", "Can you help me with {}?", "How does {} work?",
                "Why is {} important?", "How do you say {} in Chinese?", "What do you think about {}?", "Give me a summary of {}."])
    topic = pick([pick(TOPICS), pick(TOPICS), a(pick(HEROES + OBJECTS)[0]), a(rare(rng, RARE_HEROES + RARE_OBJECTS)[0])])
    return ask.format(topic), None, DUNNO


def small_zh(rng, kind=None):
    pick = rng.choice
    kind = kind or pick(SMALL)
    if kind == "sum":
        x, y = rng.randint(0, 5), rng.randint(0, 5)
        return pick([f"{x}加{y}等于几？", f"{x}加{y}等于多少？", f"{x} + {y} 等于多少？", f"{x} + {y} = ?", f"请算一下{x}加{y}。"]), None, f"{x} + {y} = {x + y}。"
    if kind == "count":
        x = rng.choice([1, rng.randint(0, 12)])
        y = x + rng.randint(2, 8)
        return pick([f"从{x}数到{y}。", f"请从{x}数到{y}。", f"你能从{x}数到{y}吗？"]), None, "、".join(map(str, range(x, y + 1))) + "。"
    if kind == "opposite":
        x, y = rng.sample(pick(OPPOSITES)[2:], 2)
        return pick([f"“{x}”的反义词是什么？", f"{x}的反义词是什么？", f"{x}的反义词"]), None, f"“{x}”的反义词是“{y}”。"
    if kind == "colour":
        x, y = pick(THINGS)[2:]
        return pick([f"{x}是什么颜色？", f"{x}是什么颜色的？", f"请问{x}的颜色是什么？"]), None, f"{x}是{y}的。"
    if kind == "repeat":
        text = repeated(rng, True)
        return pick([f"跟我说：{text}", f"请重复：{text}", f"跟我念：{text}"]), None, "你说：" + text
    if kind == "greet":
        return pick(["你好", "你好！", "早上好！", "晚上好。", "嗨", "你好吗？", "您好", "大家好"]), None, "你好！想听一个故事吗？"
    if kind == "who":
        return pick(["你是谁？", "你是谁", "你叫什么名字？", "介绍一下你自己。", "你是什么模型？", "你是ChatGPT吗？", "谁做了你？"]), None, ME_ZH
    if kind == "help":
        return pick(["你会做什么？", "你能做什么？", "帮助", "你会什么？"]), None, HELP_ZH
    if kind == "sound":
        x, y = pick(SOUNDS)[2:]
        return pick([f"{x}怎么叫？", f"{x}的叫声是什么？"]), None, f"{x}的叫声是“{y}”。"
    if kind == "day":
        i, (where, step) = rng.randrange(7), pick([("后", 1), ("前", -1)])
        return pick([f"{DAYS_ZH[i]}的{where}一天是星期几？"]), None, f"{DAYS_ZH[i]}的{where}一天是{DAYS_ZH[(i + step) % 7]}。"
    if kind == "thanks":
        return pick([("谢谢！", None, "不客气！"), ("谢谢你", None, "不客气！"), ("再见！", None, "再见！下次见。"), ("晚安", None, "晚安！做个好梦。")])
    ask = pick(["什么是{}？", "请介绍一下{}。", "告诉我{}。", "解释一下{}。", "你知道{}吗？", "帮我写{}。", "{}用英语怎么说？", "你怎么看{}？"])
    topic = pick([pick(TOPICS_ZH), pick(TOPICS_ZH), pick(HEROES + OBJECTS)[1], rare(rng, RARE_HEROES + RARE_OBJECTS)[1]])
    return ask.format(topic), None, DUNNO_ZH


# --------------------------------------------------------------------------- documents

SYSTEM = "You are Vernier's demo model.\n\nReasoning: low\n\n# Valid channels: analysis, final. Channel must be included for every message."


def message(role, text, channel=None):
    channel = f"<|channel|>{channel}" if channel else ""
    return f"<|start|>{role}{channel}<|message|>{text}<|end|>"


def preamble(rng):
    roll = rng.random()
    if roll < 0.40:
        return message("system", SYSTEM)
    if roll < 0.43:
        date = f"{rng.randint(2024, 2029)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        return message("system", "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
                       f"Current date: {date}\n\nReasoning: {rng.choice(['low', 'medium', 'high'])}\n\n"
                       "# Valid channels: analysis, commentary, final. Channel must be included for every message.")
    if roll < 0.48:
        return message("system", rng.choice(["You are a helpful assistant.", "You are a friendly storyteller.", "你是一个讲故事的助手。"]))
    return ""


def turn(user, analysis, final, last=True):
    """One question and its answer; the analysis of earlier turns is left out, as the chat template does."""
    out = message("user", user)
    if last and analysis:
        out += message("assistant", analysis, "analysis")
    out += message("assistant", final, "final")
    return out[: -len("<|end|>")] + "<|return|>" if last else out


def story_turn(rng, zh, last=True, held=False):
    story = Story(rng, held)
    user = story.ask(rng, zh)
    return turn(user, story.plan(rng, zh), story.tell(rng, zh), last), story


def small_turn(rng, zh, last=True):
    return turn(*(small_zh(rng) if zh else small_en(rng)), last)


def planning(rng, zh):
    """A request with its plan only: short, and all about copying."""
    story = Story(rng)
    return message("user", story.ask(rng, zh)) + message("assistant", story.plan(rng, zh), "analysis")


def document(rng, held=False):
    zh = rng.random() < 0.45
    roll = rng.random()
    if roll < 0.36:
        return preamble(rng) + story_turn(rng, zh, held=held)[0]
    if roll < 0.40:
        return Story(rng, held, plain=True).tell(rng, zh) + "<|endoftext|>"
    if roll < 0.46:
        return preamble(rng) + planning(rng, zh)
    if roll < 0.90:
        return preamble(rng) + small_turn(rng, zh)
    out = preamble(rng)
    if roll < 0.93:
        first, story = story_turn(rng, zh, last=False, held=held)
        return out + first + turn(*story.question(rng, zh))
    if roll < 0.95:
        return out + story_turn(rng, zh, last=False, held=held)[0] + story_turn(rng, zh, held=held)[0]
    for _ in range(rng.randint(1, 2)):
        out += small_turn(rng, zh, last=False)
    return out + (small_turn(rng, zh) if rng.random() < 0.5 else story_turn(rng, zh, held=held)[0])


def build(count, seed=1):
    rng = random.Random(seed)
    return (document(rng) for _ in range(count))


def held_out(count, seed=2):
    rng = random.Random(seed)
    return (document(rng, held=True) for _ in range(count))


def copying(count, seed=3):
    """Repeating exercises and requests with their plans only."""
    rng = random.Random(seed)
    for _ in range(count):
        zh = rng.random() < 0.45
        yield planning(rng, zh) if rng.random() < 0.5 else turn(*(small_zh if zh else small_en)(rng, "repeat"))


def slot_words():
    """(English, Chinese) words that fill slots; each should be one token."""
    table = HEROES + OBJECTS + TRAITS + COLOURS + SKILLS
    english = [row[0] for row in table] + SHE + HE
    chinese = [row[1] for row in table] + NAMES_ZH + [place[1] for place in PLACES]
    return english, sorted(set(chinese), key=len, reverse=True)


if __name__ == "__main__":
    for text in build(12, seed=3):
        print(text, end="\n\n")
