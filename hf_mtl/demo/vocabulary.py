"""The words that the sentence grammar leaves open: device names, areas, floors and free text, in each demo language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Values for the lists that `home_assistant_intents` leaves to the household.

    Args:
        names: device domain (`light`, `cover`, `todo`, ...) -> names of devices of that domain.
        lists: name of an open list (`area`, `floor`, a wildcard) -> its values.
    """

    names: Mapping[str, tuple[str, ...]]
    lists: Mapping[str, tuple[str, ...]]

    def values(self, list_name: str, *, domains: tuple[str, ...] = ()) -> tuple[str, ...]:
        """List the values that an open list may take; empty where the list is unknown.

        Args:
            list_name: name of the list, as the grammar writes it.
            domains: for the list `name`, the device domains that the template is about; empty means all.

        Returns:
            The values, in a fixed order.
        """
        if list_name != "name":
            return self.lists.get(list_name, ())
        return tuple(name for domain in domains or tuple(self.names) for name in self.names.get(domain, ()))


def _split(text: str) -> tuple[str, ...]:
    return tuple(value.strip() for value in text.split(","))


ENGLISH = Vocabulary(
    names={
        "light": _split(
            "bedside lamp, reading lamp, floor lamp, desk lamp, chandelier, christmas tree, fairy, ceiling, spot, "
            "night light, mirror, wall sconce, left bedside, lava lamp"
        ),
        "switch": _split("coffee machine, kettle, heated blanket, garden pump, phone charger, toaster, fountain"),
        "input_boolean": _split("guest mode, vacation mode, away mode"),
        "fan": _split("ceiling fan, tower fan, extractor fan, desk fan, air purifier"),
        "media_player": _split(
            "tv, television, smart speaker, record player, soundbar, radio, projector, stereo, kitchen speaker"
        ),
        "climate": _split("thermostat, air conditioner, heat pump, radiator, underfloor heating, towel heater"),
        "cover": _split("left curtain, roller blind, skylight, awning, patio shade, garage door, bay window blind"),
        "valve": _split("water valve, gas valve, sprinkler, irrigation valve, main tap"),
        "lock": _split("front door lock, back door, gun safe, side gate, bike shed lock, patio door"),
        "sensor": _split("outdoor humidity, washing machine, solar production, water meter, air quality, dryer"),
        "binary_sensor": _split("mailbox, motion sensor, freezer door, bathroom window, driveway sensor, letter flap"),
        "scene": _split("movie night, romantic dinner, good morning, party time, relax, bedtime, sunset"),
        "script": _split("morning routine, leaving home, water the plants, evening routine, laundry reminder"),
        "button": _split("doorbell, restart router, find my phone, feed the cat"),
        "input_button": _split("panic button, reset filter"),
        "vacuum": _split("robot vacuum, rosie, roomba, dusty, vacuum cleaner"),
        "lawn_mower": _split("robot mower, lawn robot, mow bot, shaun"),
        "weather": _split("london, new york, berlin, tokyo, the cabin, lisbon, home forecast, san francisco"),
        "person": _split("anna, ben, grandma, carlos, mom, dad, priya, yuki, my brother"),
        "todo": _split("chores, work, packing, weekend, garden, holiday, homework, party planning"),
    },
    lists={
        "area": _split(
            "kitchen, living room, bedroom, master bedroom, guest room, bathroom, hallway, dining room, study, garage, "
            "garden, patio, balcony, nursery, laundry room, pantry, conservatory, playroom, library, workshop, "
            "home cinema, gym, wine cellar, kid's room, entrance, terrace, sauna"
        ),
        "floor": _split("ground, first, second, third, fourth, top, upper, lower, main, basement"),
        "zone": _split("home, work, school, the gym, university, the supermarket, football practice, the airport"),
        "shopping_list_item": _split(
            "milk, eggs, bread, apples, bananas, olive oil, toilet paper, coffee beans, orange juice, cheddar cheese, "
            "tomatoes, chicken breast, brown rice, dog food, dish soap, peanut butter, frozen peas, a bag of flour, "
            "two lemons, greek yogurt, dark chocolate, batteries, sparkling water, six cans of beer, toothpaste"
        ),
        "todo_list_item": _split(
            "call the dentist, pay the rent, water the plants, book a flight, renew passport, fix the bike, "
            "clean the oven, buy a birthday present, sunscreen, send the invoice, read chapter five, wash the car, "
            "feed the cat, cancel the gym membership, charge the camera, email the landlord, "
            "rake the leaves, order new glasses"
        ),
        "timer_name": _split(
            "pizza, pasta, egg, tea, laundry, workout, cake, roast chicken, meditation, bread dough, nap, dishwasher, "
            "rice, brownies, homework, parking"
        ),
        "timer_command": _split(
            "turn off the tv, open the garage door, close the blinds, turn on the porch light, lock the front door, "
            "start the vacuum, pause the music, play some jazz, turn the heating down, stop the sprinkler, "
            "switch off all the lights, run the bedtime routine"
        ),
        "message": _split(
            "dinner is ready, time to leave, the bus is here, please come downstairs, someone is at the door, "
            "lights out in five minutes, breakfast is on the table"
        ),
        "search_query": _split(
            "the beatles, bohemian rhapsody, miles davis, abbey road, star wars, the daily news, taylor swift, "
            "classical piano, dark side of the moon, the office, summer hits, radiohead, nina simone, "
            "yellow submarine, breaking bad, white noise, kind of blue, the lion king, daft punk, moonlight sonata"
        ),
    },
)

CHINESE = Vocabulary(
    names={
        "light": _split("台灯, 落地灯, 床头灯, 吊灯, 壁灯, 夜灯, 镜前灯, 氛围灯, 灯带, 阅读灯, 圣诞树灯"),
        "switch": _split("咖啡机, 热水壶, 电热毯, 饮水机, 充电器, 水泵, 烤箱"),
        "input_boolean": _split("访客模式, 度假模式, 勿扰模式"),
        "fan": _split("吊扇, 塔扇, 排气扇, 落地扇, 空气净化器"),
        "media_player": _split("电视, 音箱, 投影仪, 收音机, 音响, 小爱音箱, 回音壁, 电视盒子"),
        "climate": _split("空调, 恒温器, 地暖, 热泵, 暖气片, 中央空调"),
        "cover": _split("左边窗帘, 卷帘, 天窗, 遮阳棚, 纱帘, 车库门, 投影幕布"),
        "valve": _split("水阀, 燃气阀, 喷淋阀, 灌溉阀, 总水阀"),
        "lock": _split("前门锁, 后门锁, 保险柜, 侧门锁, 大门锁, 阳台门锁"),
        "sensor": _split("室外湿度, 洗衣机, 太阳能发电, 水表, 空气质量, 烘干机"),
        "binary_sensor": _split("信箱, 人体传感器, 冰箱门, 浴室窗户, 车道传感器, 猫门"),
        "scene": _split("观影, 浪漫晚餐, 早安, 派对, 放松, 睡眠, 日落, 离家"),
        "script": _split("晨间流程, 浇花, 晚间流程, 提醒吃药, 全屋消毒"),
        "vacuum": _split("扫地机器人, 小白, 吸尘器, 扫拖机, 阿尘"),
        "lawn_mower": _split("割草机器人, 草坪机器人, 小绿, 阿草"),
        "weather": _split("北京, 上海, 广州, 成都, 杭州, 东京, 伦敦, 西安"),
        "person": _split("小明, 妈妈, 爸爸, 奶奶, 李雷, 韩梅梅, 王老师, 弟弟"),
        "todo": _split("家务清单, 工作清单, 行李清单, 周末清单, 花园清单, 作业清单, 派对清单"),
    },
    lists={
        "area": _split(
            "厨房, 客厅, 卧室, 主卧, 次卧, 客房, 浴室, 走廊, 餐厅, 书房, 车库, 花园, 露台, 阳台, 儿童房, 洗衣房, "
            "储藏室, 玄关, 游戏室, 工作间, 影音室, 健身房, 酒窖, 衣帽间, 阳光房, 洗手间"
        ),
        "floor": _split("一, 二, 三, 四, 五, 顶, 底, 负一"),
        "zone": _split("家, 公司, 学校, 健身房, 大学, 超市, 机场, 医院"),
        "shopping_list_item": _split(
            "牛奶, 鸡蛋, 面包, 苹果, 香蕉, 橄榄油, 卫生纸, 咖啡豆, 橙汁, 奶酪, 西红柿, 鸡胸肉, 大米, 狗粮, 洗洁精, "
            "花生酱, 速冻饺子, 一袋面粉, 两个柠檬, 酸奶, 黑巧克力, 电池, 矿泉水, 六罐啤酒, 牙膏"
        ),
        "todo_list_item": _split(
            "给牙医打电话, 交房租, 浇花, 订机票, 换护照, 修自行车, 清洗烤箱, 买生日礼物, 防晒霜, 寄发票, 读第五章, "
            "洗车, 喂猫, 取消健身卡, 给相机充电, 联系房东, 扫落叶, 配新眼镜"
        ),
        "timer_name": _split(
            "披萨, 意面, 煮蛋, 泡茶, 洗衣, 锻炼, 蛋糕, 烤鸡, 冥想, 发面, 午睡, 洗碗, 米饭, 作业, 停车"
        ),
        "timer_command": _split(
            "关掉电视, 打开车库门, 拉上窗帘, 打开门廊灯, 锁上前门, 启动扫地机, 暂停音乐, 播放爵士乐, 调低暖气, "
            "关闭喷淋, 关掉所有的灯, 运行睡前流程"
        ),
        "message": _split("晚饭好了, 该出发了, 校车到了, 请下楼, 有人敲门, 五分钟后熄灯, 早餐在桌上"),
    },
)

VOCABULARIES: Mapping[str, Vocabulary] = {"en": ENGLISH, "zh-CN": CHINESE}
